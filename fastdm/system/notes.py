"""Count what is left out or converted, and name it once."""

import logging
import threading

from fastdm.system.text import printable

logger = logging.getLogger("fastdm")


class Tally:
    """Counts what is left out, skipped or converted, with an example of each kind; `report` names it in one warning.

    Several threads may count at a time.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kinds: dict[str, tuple[int, str]] = {}
        self._sentences: dict[str, None] = {}  # in order, each once

    def add(self, kind: str, example: object, count: int = 1) -> None:
        """Count `count` things of a kind, such as "images with 16 bits scaled to 8"; the first example is kept."""
        with self._lock:
            before, first = self._kinds.get(kind, (0, ""))
            self._kinds[kind] = before + count, first or str(example)

    def say(self, sentence: str) -> None:
        """Add what cannot be counted."""
        with self._lock:
            self._sentences[sentence] = None

    def report(self, what: object) -> None:
        """Log all of it as one warning of the logger "fastdm" about `what`, and begin anew."""
        with self._lock:
            counted = [f"{kind}: {count} (such as {first})" for kind, (count, first) in self._kinds.items()]
            notes = [*counted, *self._sentences]
            self._kinds.clear()
            self._sentences.clear()
        if notes:
            logger.warning("%s: %s", printable(what), printable("; ".join(notes)))
