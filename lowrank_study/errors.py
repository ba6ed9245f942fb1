"""The exceptions that are meant for people rather than for programmers."""


class InputError(ValueError):
    """Something a person gave can't be used.

    The message is one line: what was wrong (the value itself), what would have been
    valid, and what to do. Commands print it and exit with code 2; everything else that
    is raised is a defect and keeps its traceback.
    """


class Unfinished(RuntimeError):
    """A command has written its results, but something is missing from them.

    Runs failed or diverged, or a part of the input was left out. The message lists them.
    Commands print it last and exit with code 1.
    """
