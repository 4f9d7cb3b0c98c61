"""The machine code of the Triton kernels, as ``fastdm.kernels.compile_check`` finds it: no GPU is needed.

python -m bench.compile [the compile check's own options, such as --targets sm_90]
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import results

BUDGET = results.FOLDER / "compile" / "budget.json"


def rows(reports: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for every use of a kernel, with what became of it on each target."""
    found: dict[str, dict[str, Any]] = {}
    for report in reports:
        kernel = report["kernel"].removesuffix("_kernel")
        name = f"{kernel}: {report['case']}"
        row = found.setdefault(name, {"name": name, "kernel": kernel, "case": report["case"], "targets": {}})
        keys = ("warps", "registers", "spills", "shared", "loads", "stores", "instructions")
        row["targets"][report["target"]] = {key: report[key] for key in keys}
    return list(found.values())


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "reports.json"
        gate = ["-m", "fastdm.kernels.compile_check", "--budget", str(BUDGET), "--json", str(path), *sys.argv[1:]]
        status = subprocess.run([sys.executable, *gate]).returncode
        if path.exists():
            print(results.save("compile", rows(json.loads(path.read_text())["reports"]), {"budget": BUDGET.name}))
    return status


if __name__ == "__main__":
    sys.exit(main())
