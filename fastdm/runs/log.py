"""The log of a run: a line of JSON for every iteration, with its loss and the seconds since the start.

What was measured on the way (`fastdm.runs.run.EVALUATIONS`) is kept in the same way.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from fastdm.system.files import atomic_write, put_aside

FILE = "log.jsonl"


def append_losses(folder: Path, first: int, losses: Sequence[Mapping[str, float]], seconds: float) -> None:
    """Log the losses of the iterations from `first` on, and what they consist of, by name."""
    lines = [
        json.dumps({"iteration": iteration, **values, "seconds": seconds}) + "\n"
        for iteration, values in enumerate(losses, first)
    ]
    with (folder / FILE).open("a", encoding="utf-8") as log:
        log.writelines(lines)


def cut_log(path: Path, iterations: int, note: Callable[[str], None]) -> None:
    """Leave the lines of iterations below this: a run that was killed has logged more than its checkpoint holds.

    Its last line may be cut short. A log that is damaged elsewhere is put aside, with a note: no run needs it.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept: list[bytes] = []
    for number, line in enumerate(lines, 1):
        try:
            iteration = json.loads(line)["iteration"]
            if isinstance(iteration, bool) or not isinstance(iteration, int):
                raise ValueError("an iteration is a whole number")
        except (ValueError, TypeError, KeyError, RecursionError):
            if number == len(lines) and not line.endswith(b"\n"):
                break
            aside = put_aside(path)
            note(f"line {number} of {path} is damaged; it is kept as {aside.name}, and a new log begins")
            kept = []
            break
        if iteration < iterations:
            kept.append(line)
    with atomic_write(path) as temporary:
        temporary.write_bytes(b"".join(kept))
