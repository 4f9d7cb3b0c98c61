"""What must be in a record, and records of given rows."""

from typing import Any

from bench.harness.records import Recorder, Result, Row, Suite


def _object(required: str, **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required.split(), "properties": properties}


def _if(name: str, holds: dict[str, Any], then: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"required": [name], "properties": {name: holds}}, "then": then}


_TEXT, _NUMBER, _ANY = {"type": "string"}, {"type": "number"}, {"type": "object"}
_SPREAD = _object("n median p20 p80", n={"type": "integer", "minimum": 1}) | {"additionalProperties": _NUMBER}
_ROW = _object(
    "name",
    **dict.fromkeys(("name", "failure", "note"), _TEXT),
    **dict.fromkeys(("error", "tolerance", "median_error", "median_tolerance"), _NUMBER),
    seconds={"type": "object", "additionalProperties": _SPREAD},
    correct={"type": "boolean"},
) | {
    "allOf": [
        # A speed stands next to a check only where the check is green, and more than the peak only with the reason.
        _if("correct", {"const": False}, {"not": {"required": ["seconds"]}}),
        _if("percent_of_copy", {"exclusiveMinimum": 100}, {"required": ["note"]}),
        _if("percent_of_matmul", {"exclusiveMinimum": 100}, {"required": ["note"]}),
    ]
}
SCHEMA = _object(
    "schema suite command commit code date machine settings rows",
    schema={"const": 1},
    suite={"type": "string", "pattern": "^[a-z_]+$"},
    command=_TEXT,
    commit={"type": "string", "pattern": "^[0-9a-f]{7,40}(-dirty)?$"},
    code={"type": "object", "additionalProperties": {"type": "string", "pattern": "^([0-9a-f]{12}|absent)$"}},
    date={"type": "string", "format": "date-time"},
    machine=_object(
        "device cpu cores memory_gib load system versions", versions=_ANY, cores={"type": "integer"}, load=_NUMBER
    ),
    settings=_ANY,
    rows={"type": "array", "minItems": 1, "items": _ROW},
) | {"additionalProperties": False}


def saved(suite: Suite, *rows: Row) -> Result:
    """The record of these rows, in the folder that the environment names."""
    recorder = Recorder(suite, {})
    for row in rows:
        recorder.add(row)
    (result,) = suite.load()
    return result
