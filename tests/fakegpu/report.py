"""`make gpu-report` in tiny shapes on a fake card: every stage ends, and leaves its file."""

import json
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from bench import run
from tests.fakegpu.build import build
from tests.fakegpu.cards import ROOT

# Every Python process below reads it, those of the stages too.
SITE = "from tests.fakegpu import gpu\n\ngpu.install()\n"
LEFT_OUT = {"gpu_tests"}
"""Tests of values: what they read as a size is arbitrary, and may be all of the memory."""


def run_report() -> Iterator[dict[str, Any]]:
    """A row for every stage: name, card; wrong: what does not hold."""
    stages = [stage.name for stage in run.stages("gpu", "cuda", None, smoke=True) if stage.name not in LEFT_OUT]
    with tempfile.TemporaryDirectory() as folder:
        site, out = Path(folder, "site"), Path(folder, "out")
        site.mkdir()
        (site / "sitecustomize.py").write_text(SITE)
        environment = os.environ | {
            "LD_PRELOAD": ":".join(map(str, build())),
            "PYTHONPATH": os.pathsep.join(map(str, (site, ROOT))),
            "FAKE_GPU_GIB": "80",
            "FASTDM_COMMIT": "0000000",
            "FASTDM_DEVICE_NAME": "fake",
        }
        command = [sys.executable, "-m", "bench.run", "gpu", "--smoke", "--out", str(out), "--only", *stages]
        subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL)
        (record,) = (json.loads(path.read_text()) for path in out.glob("run--*.json"))
        ends = {row["name"]: row["end"] for row in record["rows"]}
        with tarfile.open(out / "results.tar.gz") as archive:
            packed = archive.getnames()
        for stage in stages:
            wrong = [] if ends.get(stage) == "done" else [ends.get(stage, "not run")]
            begins = "RESULTS.md" if stage == "report" else f"{stage}--"
            if not any(name.startswith(begins) for name in packed):
                wrong.append("left no file")
            yield {"name": f"report: {stage}", "card": "80 GiB", "wrong": wrong}
