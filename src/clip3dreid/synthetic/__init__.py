"""The rendered world."""
