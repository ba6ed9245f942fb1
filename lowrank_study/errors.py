"""Exceptions whose messages are written for users."""


class InputError(ValueError):
    """A user's input can't be used.

    The message is one line: what was wrong, with the value, what is valid, and what to do. Commands
    print it and exit with code 2.
    """


class Unfinished(RuntimeError):
    """The results of a command are incomplete: runs failed, or input was left out.

    The message lists what is missing. Commands print it last and exit with code 1.
    """
