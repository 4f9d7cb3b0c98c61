"""The machine code of the Triton kernels, as `fastdm.kernels.compile_check` finds it: no GPU is needed.

python -m bench.compile [the compile check's own options, such as --targets sm_90]
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from bench.harness import arguments
from bench.harness.machine import REPOSITORY
from bench.harness.records import Recorder, Row, Suite

BUDGET = REPOSITORY / "bench" / "register_budget.json"


def rows(reports: Sequence[Row]) -> list[Row]:
    """The reports, one for every use of a kernel and target, with names."""
    return [{"name": f"{report['kernel']}, {report['case']}, {report['target']}", **report} for report in reports]


def _table(found: Sequence[Row]) -> str:
    """The table that the compile check prints."""
    from fastdm.kernels import compile_check

    return compile_check.table([compile_check.Report.of(row) for row in found])


SUITE = Suite(
    "compile",
    "What the compiler makes of the kernels",
    "Compiled ahead of time, without the hardware, for the shapes of the presets; what differs between targets is "
    "given in their order, what differs on one behind the others. Loads and stores are instructions · bits, of global "
    "memory.",
    ("kernels",),
    _table,
    everywhere=True,
)


def main() -> int:
    from fastdm.kernels import compile_check

    options, others = arguments.parser(__doc__).parse_known_args()
    if options.smoke:
        others += ["--targets", "sm_90", "--cases", "uniform"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reports.json"
        status = compile_check.main(["--budget", str(BUDGET), "--json", str(path), *others])
        recorder = Recorder(SUITE, {"smoke": options.smoke, "budget": BUDGET.name})
        recorder.rows = rows(json.loads(path.read_text()))
        print(recorder.save())
    return status


if __name__ == "__main__":
    sys.exit(main())
