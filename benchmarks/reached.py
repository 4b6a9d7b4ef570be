"""What our operators reach of their limits, beside what they are to reach, from files that operators.py wrote.

    .venv/bin/python benchmarks/reached.py RESULT.json [...]

The table is Markdown.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from goals import goal  # noqa: E402
from measurements import LIMITS, Measured, ResultsError, compared, load  # noqa: E402


def table(measured: Measured) -> str:
    """A row of Markdown for each operator of ours that has a goal: share of the limit that was measured beside it, the
    goal, and the fastest other system of the same run. "" where there is none."""
    lines = [
        "| operator | of | to reach | reached | beside it |",
        "| --- | --- | ---: | ---: | --- |",
    ]
    lines += _rows(measured)
    return "\n".join(lines) if len(lines) > 2 else ""


def _rows(measured: Measured) -> Iterator[str]:
    for row in compared(measured.operators):
        ours, wanted = row.ours, goal(row.ours.facts)
        if wanted is None:
            continue
        beside = f"{row.times:.2f}x {row.best.system}" if row.best else ""
        yield (
            f"| {ours.kind}: {ours.label} | {LIMITS.get(ours.limit, ours.limit)} | {100 * wanted:.0f} % "
            f"| {100 * row.reached:.0f} % | {beside} |"
        )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table. Ends with 1 where no operator in the files has a goal, with 2 where one is no results file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", help="what is in several counts as the last has it")
    try:
        found = table(load(parser.parse_args(arguments).results))
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 2
    print(found or "nothing with a goal was measured in these files")
    return 0 if found else 1


if __name__ == "__main__":
    sys.exit(main())
