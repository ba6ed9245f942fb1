"""The one exception that is meant for people rather than for programmers."""


class InputError(ValueError):
    """Something a person gave can't be used.

    The message is one line: what was wrong (the value itself), what would have been
    valid, and what to do. Commands print it and exit with code 2; everything else that
    is raised is a defect and keeps its traceback.
    """
