"""The one exception for things a user can put right."""


class InputError(Exception):
    """Bad input: what is wrong, where, and what to do about it, in one line.

    Entry points print the message and exit with status 2; every other exception is a defect of the
    program and keeps its traceback and status 1.
    """
