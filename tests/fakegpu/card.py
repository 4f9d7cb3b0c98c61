"""The checks of one fake card, in a process in which the libraries are loaded: prints a line of JSON for each."""

import json
import os
import sys
from collections.abc import Iterator
from typing import Any

import torch

from tests.fakegpu import gpu, runs, steps


def rows(what: str, device: torch.device) -> Iterator[dict[str, Any]]:
    if what == "runs":
        yield from runs.check(device)
        return
    for case in steps.KINDS if what == "kinds" else steps.SETS:
        try:
            row = steps.check(case, device)
        except Exception as error:
            row = {"wrong": [f"{type(error).__name__}: {error}"[:300]]}
        yield {"name": case.name, **row}


def main() -> None:
    gpu.install()
    for row in rows(sys.argv[1], torch.device("cuda", torch.cuda.device_count() - 1)):
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
    os._exit(0)  # Libraries clean up by a driver that is not there.
