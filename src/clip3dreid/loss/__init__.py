"""Loss terms, each a small module that owns its head, and their weighted sum."""
