"""Launches lowered to HIVM by the environment that has the vendor's compilers, and what is wrong with what came out.

    OPSOCKET_TRITON_ASCEND_PYTHON=.venv-ascend-triton/bin/python \
        python -m opsocket_ascend.hivm.lower FOLDER --chip Ascend910B3    # a folder of $OPSOCKET_RECORD_LAUNCHES

That they come out says that Triton's and the vendor's open compilers take the kernel, that the plan of on-chip memory
fits the chip, and which kind of core it is for. What `hivmc`, which comes with CANN, makes of it, and what it computes,
only a machine with CANN and an NPU can show.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Final

from opsocket.operators import Artifact
from opsocket_ascend.triton_provider.targets import VECTOR_CORES, has_compilers
from opsocket_ascend.verification.process import Checker, facts_of
from opsocket_triton.specialization import Specialization

VARIABLE: Final = "OPSOCKET_TRITON_ASCEND_PYTHON"
"""Variable: the interpreter of an environment with triton-ascend and ascendnpu-ir."""
HOW: Final = f"make ascend-triton, or {VARIABLE} names the Python of an environment with triton-ascend and ascendnpu-ir"
_BUFFERS: Final = ("UB", "L1", "L0A", "L0B", "L0C")


def python() -> str | None:
    """Of the environment that lowers: what the variable says, else this one where it has both; None where none is."""
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        return named if Path(named).is_file() else None
    has_both = importlib.util.find_spec("ascendnpuir") is not None and has_compilers()
    return sys.executable if has_both else None


def is_target(chip: str) -> bool:
    """Whether the compilers know the chip."""
    return chip in VECTOR_CORES


def lower_all(
    records: Sequence[str],
    chip: str,
    jobs: int = 1,
    on_artifact: Callable[[Artifact], None] = lambda artifact: None,
) -> list[Artifact]:
    """The artifact of each launch, as `Specialization.dumps` writes it, in order. Whatever goes wrong is a problem of
    its artifact. `RuntimeError` where `python()` is None."""
    interpreter = python()
    if interpreter is None:
        raise RuntimeError(f"no environment lowers Triton kernels for Ascend: {HOW}")
    command = (interpreter, "-W", "ignore", str(Path(__file__).with_name("lowering.py")), *sys.path)
    # A process that interprets says so to its children, and these make kernels for a chip.
    checker = Checker(command, {"TORCH_DEVICE_BACKEND_AUTOLOAD": "0", "TRITON_INTERPRET": "0"})
    questions = [(record, {"specialization": json.loads(record), "chip": chip}) for record in records]
    return checker.ask(chip, questions, jobs, partial(_artifact, chip), on_artifact)


def _artifact(chip: str, told: Mapping[str, Any]) -> Artifact:
    specialization = Specialization.loads(json.dumps(told["specialization"]))
    facts = facts_of(told)
    problems = tuple(told["problems"]) or judged(facts)
    kernel = specialization.kernel.removeprefix("opsocket_ascend.").removeprefix("opsocket_triton.")
    return Artifact(kernel, str(specialization), chip, facts, problems, (), told["seconds"])


def judged(facts: Mapping[str, Any]) -> tuple[str, ...]:
    """What is wrong with a lowered kernel whose facts `module.facts` found: memory that the chip has not, a product
    that no matrix unit takes. The compiler refuses the former itself; this is by the plan that it wrote."""
    problems = [
        f"on-chip memory: {facts[f'{name} bytes']} bytes of {name}, which has {facts[f'{name} limit']}"
        for name in _BUFFERS
        if facts.get(f"{name} bytes", 0) > facts.get(f"{name} limit", 0)
    ]
    if facts.get("matrix") == 0:
        problems.append("matrix units: a product in the source, and none of their instructions")
    return tuple(problems)


# ---- the command


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 1 where a problem was found."""
    from opsocket_triton.compile import read_records

    parser = argparse.ArgumentParser(
        prog="python -m opsocket_ascend.hivm.lower", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("records", metavar="FOLDER", type=Path, help="of $OPSOCKET_RECORD_LAUNCHES, or a file of it")
    parser.add_argument("--chip", default="Ascend910B3")
    parser.add_argument("--kernel", default="", metavar="TEXT", help="only launches in whose description TEXT is")
    parser.add_argument("--each", type=int, metavar="N", help="at most N launches of each kernel, spread over all")
    parser.add_argument("-j", "--jobs", type=int, default=1, metavar="N")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each")
    asked = parser.parse_args(arguments)
    if not is_target(asked.chip):
        parser.error(f"--chip: a target of triton-ascend is wanted, not {asked.chip}")
    if python() is None:
        parser.error(HOW)
    by_kernel: dict[str, list[str]] = {}
    for found in read_records(asked.records):
        if asked.kernel in str(found):
            by_kernel.setdefault(found.kernel, []).append(found.dumps())
    records = [record for mine in by_kernel.values() for record in _spread(mine, asked.each)]

    def tell(artifact: Artifact) -> None:
        if asked.json:
            print(json.dumps(asdict(artifact)), flush=True)
        else:
            shown = "; ".join(artifact.problems) or ", ".join(f"{k} {v}" for k, v in artifact.facts.items())
            print(f"{artifact.seconds:7.2f} s  {artifact.variant}: {shown}", flush=True)

    made = lower_all(records, asked.chip, asked.jobs, tell)
    return 1 if not made or any(artifact.problems for artifact in made) else 0


def _spread(records: Sequence[str], most: int | None) -> list[str]:
    count = len(records) if most is None else min(most, len(records))
    return [records[i * len(records) // count] for i in range(count)]


if __name__ == "__main__":
    sys.exit(main())
