"""Train a student, resume, evaluate."""
