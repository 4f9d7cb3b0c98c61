"""The machine code of the Triton kernels, as ``fastdm.kernels.compile_check`` finds it: no GPU is needed.

python -m bench.compile [the compile check's own options, such as --targets sm_90]
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import results

BUDGET = results.REPOSITORY / "bench" / "register_budget.json"


def rows(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The reports as they are, one for every use of a kernel and target."""
    return [{"name": f"{report['kernel']}, {report['case']}, {report['target']}", **report} for report in reports]


def main() -> int:
    from fastdm.kernels import compile_check

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reports.json"
        status = compile_check.main(["--budget", str(BUDGET), "--json", str(path), *sys.argv[1:]])
        print(results.save("compile", rows(json.loads(path.read_text())), {"budget": BUDGET.name}))
    return status


if __name__ == "__main__":
    sys.exit(main())
