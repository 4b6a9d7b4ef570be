"""A case as a script of its own, to step through with a debugger: it needs nothing but opsocket and the backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from opsocket_conformance.case import Case

_SCRIPT: Final = '''\
"""{id} on {backend}: break in `run` for what a kernel is given, in `compare` for what it made of it."""
import numpy as np
import opsocket
from opsocket_conformance import bench, case, checks, findings

class Bench(bench.Bench):
    def run(self, plan, *args, **kwargs):
        print(plan.request.op, "by", plan.provider)
        return super().run(plan, *args, **kwargs)

    def compare(self, what, got, want, bound, **how):
        super().compare(what, got, want, bound, **how)
        if got.shape == want.shape and want.size:
            ratio = findings.ratios(got, want, bound)
            at = np.unravel_index(ratio.argmax(), ratio.shape)
            print(f"{{what}}{{[*map(int, at)]}}: out {{got[at]:.9g}}, ref {{want[at]:.9g}}, ratio {{ratio[at]:.6g}}")

asked, bench, _ = case.parse_case({id!r}, checks.CHECKS), Bench(session={open}), np.seterr(all="ignore")
asked.check.run(bench, asked.rng({seed})), bench.finish()
print(*bench.failures, f"worst ratio: {{bench.ratio}}", sep="\\n")
'''


def reproducer(case: Case, backend: str, seed: int = 0, pins: Mapping[str, str] | None = None) -> str:
    """A Python script of at most 20 lines that runs one case in one process, and prints for each comparison its worst
    element: out, ref and ratio. backend, pins, seed: as the run had them that found it."""
    options = f", operators={dict(pins)!r}" if pins else ""
    return _SCRIPT.format(id=case.id, backend=backend, open=f"opsocket.open({backend!r}{options})", seed=seed)
