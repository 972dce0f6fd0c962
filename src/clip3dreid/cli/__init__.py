"""What is typed on a command line: one command a file."""
