"""The one exception that a user's mistake raises."""


class FastDMError(ValueError):
    """A setting, a file or a data set that cannot be used.

    The message is one sentence: what was wrong, and what would be right. The command line prints it and exits with 2.
    """
