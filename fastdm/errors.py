"""The one exception that a user's mistake raises, and the checks of single settings that raise it."""

import difflib
import operator
from collections.abc import Iterable
from typing import Any

MOST_NAMES = 20
"""Names that a sentence can hold."""

LONGEST = 80
"""Characters of a value that a sentence can hold."""

LISTED = ("network", "data set", "augmentation", "preset")
"""What `fastdm list` lists."""


class FastDMError(ValueError):
    """A setting, a file or a data set that cannot be used.

    The message is one sentence: what was wrong, and what would be right. The command line prints it and exits with 2.
    """


class OtherRankEnded(FastDMError):
    """Another process of the job has ended, or cannot be reached; the message names it, and says why if it could."""


def unknown(what: str, name: str, known: Iterable[str]) -> FastDMError:
    """The error for a name that is not known: it suggests the nearest ones, else lists all, or the first of many."""
    by_lower = {each.lower(): each for each in known}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=3, cutoff=0.7)
    if close:
        return FastDMError(f"unknown {what} {name!r}; did you mean {' or '.join(by_lower[each] for each in close)}?")
    names = [*by_lower.values()]
    some = ", ".join(names if len(names) <= MOST_NAMES else names[: MOST_NAMES // 2])
    more = "" if len(names) <= MOST_NAMES else f", …: {len(names)} in all"
    if more and what in LISTED:
        more += f" (fastdm list {what.replace(' ', '')}s)"
    return FastDMError(f"unknown {what} {name!r}; choose one of {some}{more}")


def whole_number(name: str, value: Any, lowest: int) -> int:
    """`value` as a Python int; FastDMError unless it is a whole number of at least `lowest` and below 2**63."""
    try:
        number = operator.index(value)
    except TypeError:
        number = lowest - 1
    if isinstance(value, bool) or not lowest <= number < 2**63:
        limit = " and below 2^63" if number >= 2**63 else ""
        raise FastDMError(f"{name} is {_shown(value)}; it must be a whole number of at least {lowest}{limit}")
    return number


def real_number(name: str, value: Any) -> float:
    """`value` as a Python float; FastDMError unless it is a number."""
    if isinstance(value, bool | str) or not hasattr(value, "__float__"):
        raise FastDMError(f"{name} is {_shown(value)}; it must be a number")
    return float(value)


def one_of(name: str, value: object, allowed: Iterable[object]) -> None:
    """Raise FastDMError unless `value` is one of the allowed ones."""
    allowed = tuple(allowed)
    try:
        is_allowed = value in allowed
    except (ValueError, RuntimeError):  # an array or a tensor, which compares its numbers
        is_allowed = False
    if not is_allowed:
        choices = ", ".join(repr(choice) for choice in allowed if choice is not None)
        raise FastDMError(f"{name} is {_shown(value)}; it must be one of {choices}")


def _shown(value: object) -> str:
    """The value as Python writes it, or its type where that is long."""
    text = repr(value)
    return text if len(text) <= LONGEST and "\n" not in text else f"a {type(value).__name__}"
