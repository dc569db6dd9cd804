"""What is wrong with the user's input: the one kind of error whose message is meant for a person."""


class InputError(ValueError):
    """A name, file, option or shape that cannot be used; the message says what was found and what would do.

    The command line prints the message and exits with 2; every other error is a bug and keeps its traceback.
    """
