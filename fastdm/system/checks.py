"""What files from elsewhere are held to before they are believed."""

import json
import math
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdm.errors import FastDMError

if TYPE_CHECKING:
    from torch import Tensor

_KINDS = {
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
}


def all_finite(tensor: "Tensor") -> bool:
    """Whether no number is infinite or NaN. It takes no memory, unlike `isfinite`."""
    return tensor.numel() == 0 or all(bool(end.isfinite()) for end in tensor.detach().aminmax())


def irregular(status: os.stat_result) -> str | None:
    """What a file is if it is not a regular one, such as "a named pipe": opening that may wait for ever."""
    return None if stat.S_ISREG(status.st_mode) else _KINDS.get(stat.S_IFMT(status.st_mode), "something else")


def check_regular(path: Path) -> None:
    """Raise FastDMError, naming the file, unless it is there and is a regular file (links are followed)."""
    try:
        kind = irregular(path.stat())
    except (OSError, ValueError) as error:  # ValueError: a zero byte in its name
        raise FastDMError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if kind is not None:
        raise FastDMError(f"{path} is {kind}; it must be a regular file")


def parse_json(text: str | bytes) -> Any:
    """What a JSON text says; ValueError for whatever is wrong with it, also if it is nested too deeply to be read."""
    try:
        return json.loads(text)
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except ValueError as error:  # Python's limit of 4,300 digits
        raise ValueError("its JSON holds a number of too many digits") from error


def finite_numbers(values: Sequence[object]) -> tuple[float, ...]:
    """The values as Python floats; ValueError unless all of them are numbers that are finite as float32."""
    numbers = []
    for value in values:
        if isinstance(value, bool | str | bytes) or not hasattr(value, "__float__"):
            raise ValueError(f"{str(value)[:40]!r} is not a number")
        try:
            number = float(value)
        except (OverflowError, TypeError, ValueError):
            number = math.inf
        if not abs(number) <= 3.4028234e38:
            raise ValueError(f"{number!s} is not a finite number of 32 bits")
        numbers.append(number)
    return tuple(numbers)


def check_normalisation(mean: Sequence[object], std: Sequence[object], channels: int) -> tuple[tuple[float, ...], ...]:
    """Mean and std as tuples of floats; ValueError unless each has one finite value per channel and std is above 0."""
    if not len(mean) == len(std) == channels:
        raise ValueError(f"mean and std must have {channels} values, one per channel")
    try:
        numbers = finite_numbers(mean), finite_numbers(std)
    except ValueError as error:
        raise ValueError(f"mean and std must have {channels} values, one per channel, but {error}") from error
    if min(numbers[1]) < 1e-30:  # a division by it would leave float32
        raise ValueError(f"std is {min(numbers[1]):g} in a channel; it must be above 0")
    return numbers
