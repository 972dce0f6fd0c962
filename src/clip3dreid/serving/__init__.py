"""A page to try a model on: crops and words in, people, descriptions and bodies out."""
