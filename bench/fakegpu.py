"""What a step takes on a GPU, counted on cards that do not exist: plan, memory, graph, launches."""

import json
import subprocess
import sys
from argparse import Namespace

from bench.harness import arguments, records
from bench.harness.machine import REPOSITORY
from bench.harness.records import Rows, Suite

SUITE = Suite(
    "fakegpu",
    "Steps on GPUs that are not there",
    "The plan, the allocations, the graph and the launches are real (see tests/fakegpu/README.md); nothing was "
    "computed, and cuDNN's workspaces are missing. Nodes are those of an iteration's graph (0: it is streamed), "
    "launches and waits those of the host in an iteration.",
    ("kernels", "augmentation", "data", "networks", "objectives", "condensation", "system", "tests/fakegpu"),
    """
    card, data set | name; real images | residence; classes at a time | chunk_classes | .0f
    planned, GiB | planned_mib | .1f/1024; peak, GiB | peak_mib | .1f/1024
    kept by the allocator, GiB | reserved_mib | .1f/1024
    nodes | nodes | .0f; launches | launches | ,.0f; waits | waits | .0f
    """,
    everywhere=True,
)


def rows(_: Namespace) -> Rows:
    command = [sys.executable, "-m", "tests.fakegpu", "--json"]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for row in map(json.loads, process.stdout):
            failed = {"failure": "; ".join(row["wrong"])} if row["wrong"] else {}
            if "peak_mib" in row or failed:
                yield {**row, "name": f"{row['card']}: {row['name']}", **failed}
    if process.returncode:
        sys.exit(process.returncode)


if __name__ == "__main__":
    records.record(SUITE, arguments.parser(__doc__).parse_args(), rows)
