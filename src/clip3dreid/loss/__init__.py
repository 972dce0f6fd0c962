"""Loss terms, each with its head, and their weighted sum."""
