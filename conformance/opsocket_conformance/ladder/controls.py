"""What is wrong on purpose, and has to be refused on the spot: kernels by the suite's own cases, launches by whoever
makes artifacts of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from opsocket.operators import Artifact, Ladder, Plan, Request, Session, WrongKernel
from opsocket_conformance.case import Case, parse_case
from opsocket_conformance.cases import cases_of
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.isolation import Pool, Question
from opsocket_conformance.power.fault import Fault
from opsocket_conformance.verdicts import Result, Verdict
from opsocket_conformance.worker import CONTROL


@dataclass(frozen=True)
class Control:
    """Whether what is wrong on purpose was refused. rung: "numerics" or "artifact". arch: for which. said: of it."""

    name: str
    wrong: str
    rung: str
    arch: str
    refused: bool
    said: str


def fault_of(right: Session, name: str) -> Fault:
    """The fault of a session in which the backend's wrong kernel of that name serves its operator."""
    ladder = right.backend.ladder()
    assert ladder is not None, "only a backend that has one brings controls"
    known = {control.name: control for control in ladder.wrong_kernels(right.device.arch)}
    plan = ladder.wrong_plan(name)

    def instead(session: Session, request: Request, provider: str) -> Plan:
        return plan(session, request, provider)

    # Watched as the right kernel is: what it does in hiding is its own doing.
    return Fault(known[name].operator, kernel=instead, name=name, wrong=known[name].wrong, hidden=True)


def ask_kernels(ladder: Ladder, arch: str, pool: Pool, seed: int) -> list[Control]:
    """Put each wrong kernel to a case of its operator and type, on a stand-in for `arch`."""
    wrong = ladder.wrong_kernels(arch)
    answers: dict[str, Result] = {}
    pool.run(
        [Question(_case(kernel), seed, CONTROL + kernel.name) for kernel in wrong],
        lambda question, result: answers.update({question.fault: result}),
    )
    found = []
    for kernel in wrong:
        result = answers[CONTROL + kernel.name]
        told = "\n".join(result.messages).strip()
        refused = result.verdict in (Verdict.FAIL, Verdict.CRASH) and kernel.finding in told
        lines = told.splitlines()
        # The last: before it a traceback shows the line of source that raises the error, its text not filled in.
        telling = next((line for line in reversed(lines) if kernel.finding in line), "".join(lines[-1:]))
        said = f"{result.verdict}: {telling}"
        found.append(Control(kernel.name, kernel.wrong, "numerics", arch, refused, said))
    return found


def _case(kernel: WrongKernel) -> Case:
    """The case that the kernel names, or the first plain one of the smoke tier in whose id its text is."""
    if "[" in kernel.case:
        return parse_case(kernel.case, CHECKS)
    wanted = {f"op:{kernel.operator}", f"dtype:{kernel.dtype}"}
    return next(
        case
        for case in cases_of("smoke")
        if case.check.name == kernel.operator and wanted <= case.check.features() and kernel.case in case.id
    )


def ask_launches(ladder: Ladder, arches: Sequence[str], jobs: int) -> list[Control]:
    """Have an artifact made of each wrong launch."""
    wrong = [launch for arch in arches for launch in ladder.wrong_launches(arch)]
    made: Sequence[Artifact] = ladder.make([(launch.record, launch.arch) for launch in wrong], jobs, lambda each: None)
    found = []
    for launch, artifact in zip(wrong, made, strict=True):
        said = next((text for text in artifact.problems if text.startswith(launch.problem)), "")
        told = said or "; ".join(artifact.problems) or "nothing was found wrong"
        found.append(Control(launch.name, launch.wrong, "artifact", launch.arch, bool(said), told))
    return found
