"""The report's section "ladder": what was climbed, what follows from it for the evidence, and why it makes a run red.

A report is believed only as far as its sections agree, so evidence and verdict are computed from the section alone: by
whoever writes a report, and again by whoever checks one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

from opsocket.operators import Artifact, ContractError, Fact, Spec
from opsocket_conformance.ladder.controls import Control
from opsocket_conformance.verdicts import Result, Verdict, count

_LONGEST = 2000
_FRAMEWORK = "composed of the framework's operators"
LACKING: Final = {"compiled": "not compiled", "schema": "not held against the schema"}
"""What is said of a launch of which no artifact was made, by the kind of artifact."""

_WRONG = (Verdict.FAIL, Verdict.CRASH, Verdict.NOT_RUN)


@dataclass(frozen=True)
class Launch:
    """A kernel as it was launched. record: the backend's own text. owners: "operator/provider" of the plans that
    launched it, "" for what no plan's `run` launched. arches: for which of them. kind: of its artifacts."""

    record: str
    owners: tuple[str, ...]
    arches: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Elsewhere:
    """The cases of a run for another architecture. same: those that launch the same there, so that their numbers are
    known. results: of the others: of those in `alike`, which launch the same as for an architecture before, what
    came of them on that one's stand-in; of the rest on a stand-in of its own."""

    arch: str
    same: tuple[str, ...]
    results: tuple[Result, ...]
    alike: tuple[str, ...] = ()


@dataclass(frozen=True)
class Binding:
    """A call of a vendor library. library: and its version, "" where it is not here. problem: why it does not bind."""

    target: str
    provider: str
    library: str
    problem: str


@dataclass(frozen=True)
class Climbed:
    """What came of the rungs. kind: of the artifacts that a ladder makes. stand_in: the architecture that something
    stood in for, "" for the device itself; elsewhere: for which others. arches: that artifacts were made for. launches:
    all of them; made: artifacts, by the index of the launch. limits: what none of it shows."""

    kind: str
    stand_in: str
    elsewhere: tuple[Elsewhere, ...]
    arches: tuple[str, ...]
    launches: tuple[Launch, ...]
    made: tuple[tuple[int, Artifact], ...]
    controls: tuple[Control, ...]
    bindings: tuple[Binding, ...]
    limits: tuple[str, ...]


def launches_of(
    results: Sequence[Result],
    elsewhere: Sequence[Elsewhere],
    arches: Sequence[str],
    kind_of: Callable[[str], str],
) -> list[Launch]:
    """Every different launch, with all that launched it and for which architectures, in a stable order.

    arches: those that the run itself speaks for. What counts for an operator that no plan has, such as capture, is all
    that its cases launched.
    """
    owners: dict[str, set[str]] = {}
    where: dict[str, set[str]] = {}

    def add(result: Result, speaks_for: Sequence[str]) -> None:
        is_group = result.provider and not _has_plans(result.operator)
        also = {f"{result.operator}/{result.provider}"} if is_group else set()
        for owner, records in result.launched.items():
            for record in records:
                owners.setdefault(record, set()).update({owner} | also)
                where.setdefault(record, set()).update(speaks_for)

    others = {other.arch: other for other in elsewhere}
    same = {arch: set(other.same) for arch, other in others.items()}
    for result in results:
        add(result, [arch for arch in arches if arch not in others or result.case in same[arch]])
    for arch, other in others.items():
        for result in other.results:
            add(result, [arch])
    return [
        Launch(
            record,
            tuple(sorted(owners[record])),
            tuple(arch for arch in arches if arch in where[record]),
            kind_of(record),
        )
        for record in sorted(owners)
    ]


def _has_plans(operator: str) -> bool:
    try:
        Spec.of(operator)
    except ContractError:
        return False
    return True


def section(climbed: Climbed, results: Sequence[Result]) -> dict[str, Any]:
    """As the report has it."""
    content = {
        "kind": climbed.kind,
        "stand_in": climbed.stand_in,
        "architectures": list(climbed.arches),
        "numerics": [_elsewhere(other) for other in climbed.elsewhere],
        "launches": [
            {"owners": list(x.owners), "architectures": list(x.arches), "kind": x.kind} for x in climbed.launches
        ],
        "artifacts": [_artifact(index, made) for index, made in climbed.made],
        "controls": [{**asdict(control), "said": control.said[:_LONGEST]} for control in climbed.controls],
        "bindings": [{**asdict(binding), "problem": binding.problem[:_LONGEST]} for binding in climbed.bindings],
        "limits": list(climbed.limits),
    }
    return {**content, "operators": operators(content, results)}


def _elsewhere(other: Elsewhere) -> dict[str, Any]:
    wrong = [result for result in other.results if result.verdict in _WRONG]
    return {
        "arch": other.arch,
        "same": len(other.same),
        "alike": len(other.alike),
        "counts": {verdict.value: number for verdict, number in count(other.results).items()},
        "wrong": [
            {"case": r.case, "verdict": r.verdict.value, "said": "\n".join(r.messages)[-_LONGEST:]} for r in wrong
        ],
    }


def _artifact(index: int, made: Artifact) -> dict[str, Any]:
    return {
        "launch": index,
        "kernel": made.kernel,
        "variant": made.variant[:_LONGEST],
        "arch": made.arch,
        "facts": {name: _fact(value) for name, value in made.facts.items()},
        "problems": [text[:_LONGEST] for text in made.problems],
        "accepted": [text[:_LONGEST] for text in made.accepted],
        "seconds": made.seconds,
    }


def _fact(value: Fact) -> float | int | str | list[str]:
    return list(value) if isinstance(value, tuple) else value


def operators(content: Mapping[str, Any], results: Sequence[Result]) -> list[dict[str, Any]]:
    """For each operator and provider of which a case passed: how many launches were its own, or the operator's by
    whoever serves it on other architectures alone, and what is proven of the artifacts: their kind, the lowest where
    there are several, where every one of them was made, for every architecture, and is right; else "none", and why."""
    made = {(entry["launch"], entry["arch"]) for entry in content["artifacts"]}
    wrong = {(entry["launch"], entry["arch"]) for entry in content["artifacts"] if entry["problems"]}
    found = []
    for operator, provider, tier in sorted({_served(r) for r in results if r.verdict is Verdict.PASS and r.provider}):
        owner = f"{operator}/{provider}"
        mine = [(i, x) for i, x in enumerate(content["launches"]) if owner in x["owners"]]
        if mine:
            mine += [
                (i, x)
                for i, x in enumerate(content["launches"])
                if owner not in x["owners"] and _serves_elsewhere(x, operator, content["stand_in"])
            ]
        lacking = Counter(
            x["kind"]
            for i, x in mine
            if not x["architectures"] or any((i, arch) not in made for arch in x["architectures"])
        )
        refused = sum(any((i, arch) in wrong for arch in x["architectures"]) for i, x in mine)
        counts = ((refused, "refused"), *((lacking[kind], what) for kind, what in LACKING.items()))
        said = [f"{number} {what}" for number, what in counts if number]
        why = f"of {len(mine)} launches {' and '.join(said)}" if said else ""
        if not mine:
            why = _FRAMEWORK if tier == "composed" else "nothing was launched that artifacts are made of"
        entry = {"operator": operator, "provider": provider, "launches": len(mine)}
        proven = "none" if why else lowest([x["kind"] for _, x in mine])
        found.append({**entry, "artifact": proven, "why": why})
    return found


def _serves_elsewhere(launch: Mapping[str, Any], operator: str, stand_in: str) -> bool:
    """Whether a launch is the operator's on other architectures alone, where another provider may serve it."""
    return stand_in not in launch["architectures"] and any(x.startswith(f"{operator}/") for x in launch["owners"])


def _served(result: Result) -> tuple[str, str, str]:
    return result.operator, result.provider, result.tier


def artifact_of(content: Mapping[str, Any]) -> str:
    """The lowest that is proven of any operator that passed."""
    return lowest([entry["artifact"] for entry in content["operators"]])


def lowest(proven: Sequence[str]) -> str:
    """Of kinds of artifacts, the one that says least; "none" of none."""
    return min(proven, key=("none", "schema", "compiled").index, default="none")


def failure(content: Mapping[str, Any]) -> str:
    """Why the ladder makes a run red, "" where it does not."""
    passed = [control for control in content["controls"] if not control["refused"]]
    if passed:
        return (
            f"{len(passed)} controls passed that had to be refused, such as {passed[0]['name']} ({passed[0]['arch']})"
        )
    wrong = [entry for entry in content["artifacts"] if entry["problems"]]
    if wrong:
        first = f"{wrong[0]['kernel']} for {wrong[0]['arch']}"
        return f"{len(wrong)} of {len(content['artifacts'])} artifacts refused, such as {first}"
    for other in content["numerics"]:
        if other["wrong"]:
            return f"{len(other['wrong'])} cases are wrong for {other['arch']}, such as {other['wrong'][0]['case']}"
    unbound = [entry for entry in content["bindings"] if entry["problem"] and entry["library"]]
    if unbound:
        return f"{len(unbound)} calls do not bind, such as {unbound[0]['target']}"
    return ""


def contradictions(content: Mapping[str, Any], device: Mapping[str, Any], results: Sequence[Result]) -> Iterator[str]:
    """What in a report's section does not agree with the rest of the report, or with itself."""
    stand_in = device["arch"] if device["numerics"] != "device" else ""
    if content["stand_in"] != stand_in:
        yield f"ladder: the numbers are {device['numerics']} on {device['arch']}, not by a stand-in for another"
    others = [arch for arch in content["architectures"] if arch != device["arch"]]
    if [other["arch"] for other in content["numerics"]] != others:
        yield f"ladder: numbers are wanted for {', '.join(others) or 'no other architecture'}"
    for other in content["numerics"]:
        if other["same"] + sum(other["counts"].values()) != len(results):
            yield f"ladder: cases are missing for {other['arch']}"
        if other.get("alike", 0) > sum(other["counts"].values()):
            yield f"ladder: more cases are as for another than there are for {other['arch']}"
        if len(other["wrong"]) != sum(other["counts"][verdict.value] for verdict in _WRONG):
            yield f"ladder: what is wrong for {other['arch']} does not agree with its counts"
    known = Counter((entry["launch"], entry["arch"]) for entry in content["artifacts"])
    for (launch, arch), number in known.items():
        launched = content["launches"][launch]["architectures"] if launch < len(content["launches"]) else ()
        if arch not in launched or arch not in content["architectures"] or number > 1:
            yield f"ladder: artifact of launch {launch} for {arch}: twice, or of nothing that was asked for"
    if content["operators"] != operators(content, results):
        yield "ladder: what is proven of operators does not follow from the artifacts"
    rungs = {(control["rung"], control["arch"]) for control in content["controls"]}
    wanted = [("artifact", arch) for arch in content["architectures"]] + ([("numerics", stand_in)] if stand_in else [])
    for rung, arch in wanted:
        if (rung, arch) not in rungs:
            yield f"ladder: no control of the {rung} for {arch}"
