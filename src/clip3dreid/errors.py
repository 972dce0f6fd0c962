"""The one exception for things a user can put right."""


class InputError(Exception):
    """Bad input: what is wrong, where, and what to do about it, in one line.

    Entry points print the message and exit with status 2; every other exception is a defect of the
    program and keeps its traceback and status 1.
    """


def plain_reason(error: BaseException) -> str:
    """Says in one line why a library could not read a file, without advice that does not apply here.

    NumPy takes what it does not know for a pickle, and advises to load it as one, which runs whatever is in it.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).split())
    return "it holds no plain arrays" if "pickle" in text else text or type(error).__name__
