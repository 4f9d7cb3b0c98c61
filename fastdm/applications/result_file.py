"""Results of a long job in a file of JSON, written again after each, so that the job can continue where it was."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from fastdm.errors import FastDMError
from fastdm.system.checks import parse_json
from fastdm.system.files import writing


def _changes(before: Mapping[str, Any], now: Mapping[str, Any], older: Mapping[str, Any]) -> Iterator[str]:
    """What differs, in words; of a group of settings only those that do."""
    for name, value in now.items():
        was = before.get(name, older.get(name))
        if isinstance(value, dict) and isinstance(was, dict):
            yield from _changes(was, value, {})
        elif was != value:
            yield f"{name} was {was!r} and is {value!r}"


class ResultFile:
    """`{"settings": …, "results": […]}`: what the job was started with, and a record for each result.

    It is written at once: what lies next to it is of these settings, also if the job stops before the first result.

    resume: continue from what the file holds. overwrite: start over. older: settings that files of earlier versions do
    not state. writes: whether this process writes it, as the first of several ranks does. Raises FastDMError for
    results that are there without resume or overwrite, for a file that was begun with other settings, and for a damaged
    one.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        overwrite: bool,
        older: Mapping[str, Any] | None = None,
        writes: bool = True,
    ) -> None:
        if resume and overwrite:
            raise FastDMError("resume continues from the results so far, and overwrite starts over: ask for one")
        self.path = path
        self._writes = writes
        self.settings = json.loads(json.dumps(settings))
        self.records: list[dict[str, Any]] = []
        if path.exists() and not overwrite:
            self._continue(resume, json.loads(json.dumps(older or {})))
        self._write()

    def _continue(self, resume: bool, older: Mapping[str, Any]) -> None:
        try:
            content = parse_json(self.path.read_bytes())
            before, records = dict(content["settings"]), [dict(record) for record in content["results"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise FastDMError(f"{self.path} is damaged ({error}); remove it, or overwrite it") from error
        if not resume:
            if records:
                raise FastDMError(f"{self.path} is there already: resume it, overwrite it, or choose another folder")
            return
        changed = [*_changes(before, self.settings, older)]
        if changed:
            raise FastDMError(
                f"{self.path} was begun with other settings ({'; '.join(changed)}); use the same, or overwrite"
            )
        self.records = records

    def find(self, **key: Any) -> dict[str, Any] | None:
        """The record that has these values, None if there is none."""
        matching = (record for record in self.records if key.items() <= record.items())
        return next(matching, None)

    def add(self, **record: Any) -> dict[str, Any]:
        """Keep a record, and write the file."""
        self.records.append(record)
        self._write()
        return record

    def _write(self) -> None:
        if not self._writes:
            return
        lines = ",\n".join(f"  {json.dumps(each)}" for each in self.records)
        with writing(self.path) as temporary:
            temporary.write_text(
                f'{{"settings": {json.dumps(self.settings)},\n "results": [\n{lines}\n]}}\n', encoding="utf-8"
            )
