"""Run the product on fake cards of several sizes: `make fake-gpu`. See README.md next to this file.

python -m tests.fakegpu [--json]        --json: a line of JSON for every check, with all that was counted
python -m tests.fakegpu report          `make gpu-report` on tiny shapes instead (4 minutes)
"""

import json
import sys

from tests.fakegpu.cards import run_all
from tests.fakegpu.report import run_report


def main() -> int:
    as_json = sys.argv[1:] == ["--json"]
    count = wrong = 0
    for row in run_report() if sys.argv[1:] == ["report"] else run_all():
        count, wrong = count + 1, wrong + bool(row["wrong"])
        line = f"{row['card']:15} {row['name']:45} {'; '.join(row['wrong']) or 'ok'}"
        print(json.dumps(row) if as_json else line, flush=True)
    print(f"{count} checks, {wrong} wrong", file=sys.stderr if as_json else sys.stdout)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
