"""Build students and teachers, and load the weights they start from."""
