"""The one exception that a user's mistake raises."""

import difflib
from collections.abc import Iterable


class FastDMError(ValueError):
    """A setting, a file or a data set that cannot be used.

    The message is one sentence: what was wrong, and what would be right. The command line prints it and exits with 2.
    """


def unknown(what: str, name: str, known: Iterable[str]) -> FastDMError:
    """The error for a name that is not one of those known: it suggests the nearest, else lists all."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.7)
    if close:
        return FastDMError(f"unknown {what} {name!r}; did you mean {' or '.join(by_lower[each] for each in close)}?")
    return FastDMError(f"unknown {what} {name!r}; choose one of {', '.join(by_lower.values())}")
