"""Draws what operators.py, whole_model.py and `opsocket limits --json` wrote: every plot that the files have data for.

    .venv/bin/python benchmarks/plot.py RESULT.json [...] [--out FOLDER] [--only roofline,share,...] [--format svg|png]

Several files are drawn as one: work that several have measured counts as the last file has it. Needs
matplotlib (`pip install 'opsocket[bench]'`).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

from measurements import ResultsError, load  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the plots and print their paths. Ends with 2 where a file or matplotlib is not as it has to be."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("reports/plots"), help="a folder")
    parser.add_argument("--only", default="", help="names of plots, with commas; default: all")
    parser.add_argument("--format", choices=("svg", "png"), default="svg")
    args = parser.parse_args(arguments)
    try:
        from charts import CHARTS

        from opsocket_engine.figures import save
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("plots are drawn by matplotlib, which is not installed: pip install 'opsocket[bench]'", file=sys.stderr)
        return 2
    wanted = args.only.split(",") if args.only else list(CHARTS)
    if unknown := set(wanted) - set(CHARTS):
        parser.error(f"--only: no plot is called {', '.join(sorted(unknown))}; there are {', '.join(CHARTS)}")
    try:
        measured = load(args.results)
    except ResultsError as error:
        print(error, file=sys.stderr)
        return 2
    args.out.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        figure = CHARTS[name](measured)
        if figure is None:
            print(f"{name}: nothing measured for it in these files", file=sys.stderr)
            continue
        path = args.out / f"{name}.{args.format}"
        save(figure, path)
        print(path)
    return 0


if __name__ == "__main__":
    sys.exit(main())
