"""What our operators reach of their limits, beside what they are to reach, from files that operators.py wrote.

.venv/bin/python benchmarks/reached.py RESULT.json [...]
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from goals import goal  # noqa: E402
from measurements import Measured, Operator, ResultsError, load  # noqa: E402

OURS = "opsocket"
LIMITS = {"read": "a raw read", "int8": "int8 products", "bf16": "bf16 products", "f32": "f32 products"}


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
    cases: dict[tuple[str, str], list[Operator]] = defaultdict(list)
    for operator in measured.operators:
        cases[operator.kind, operator.label].append(operator)
    for systems in cases.values():
        ours = next((each for each in systems if each.system == OURS), None)
        wanted = goal(ours.facts) if ours else None
        if ours is None or wanted is None:
            continue
        limit = statistics.median(rate for each in systems for rate in each.limit_rates)
        best = max((each for each in systems if each is not ours), key=lambda each: each.rate, default=None)
        beside = f"{ours.rate / best.rate:.2f}x {best.system}" if best else ""
        yield (
            f"| {ours.kind}: {ours.label} | {LIMITS.get(ours.limit, ours.limit)} | {100 * wanted:.0f} % "
            f"| {100 * ours.rate / limit:.0f} % | {beside} |"
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
