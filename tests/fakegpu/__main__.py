"""Run the product on fake cards of several sizes: `make fake-gpu`. See README.md next to this file."""

import sys

from tests.fakegpu.cards import run_all


def main() -> int:
    count = wrong = 0
    for row in run_all():
        count, wrong = count + 1, wrong + bool(row["wrong"])
        print(f"{row['card']:15} {row['name']:45} {'; '.join(row['wrong']) or 'ok'}", flush=True)
    print(f"{count} checks, {wrong} wrong")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
