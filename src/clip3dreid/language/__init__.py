"""Words for bodies: the vocabulary, and which words fit a measured person."""
