"""Is a report whole, of this suite, consistent in itself, and does it repeat? What accident or editing leaves is found.

A forger who runs this code can write a report that is whole; only running cases again, on hardware that one trusts,
says more. The hash tells a changed file from the one that was written, and nothing about who wrote it.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from opsocket.operators import INTERFACE_VERSION, BackendInfo, ContractError, DeviceInfo, Reason
from opsocket_conformance import SUITE_VERSION
from opsocket_conformance.case import Case
from opsocket_conformance.evidence import evidence_of, host, suite_digest
from opsocket_conformance.ladder import section as ladder_section
from opsocket_conformance.planned import Planned, parse_shard, plan_run, why_red
from opsocket_conformance.profiles import PROFILES, find_profiles, hold
from opsocket_conformance.report import data
from opsocket_conformance.verdicts import Filtered, Result, Verdict

SAME: Final = 1e-6
"""How far, relative to each other, the ratios of one case may be on one machine with one set of versions."""
FACTOR: Final = 4.0
"""The same elsewhere, or where a case isn't deterministic: this factor, or both below `HARMLESS`."""
HARMLESS: Final = 0.5
_MOST_NAMED = 5
_ROUNDING: Final = 1e-6

Again = Callable[[Sequence[Case]], Sequence[Result]]
"""Runs cases with the report's seed."""


def planned_for(report: dict[str, Any]) -> Planned:
    """The cases that a report has to have. `ContractError` where it asks for what this suite does not know."""
    run = report["run"]
    profiles = find_profiles(run["profiles"])
    return plan_run(run["tier"], profiles, run["cases"], run["filter"], parse_shard(run["shard"]))


def wholeness(report: dict[str, Any]) -> list[str]:
    """What is wrong with a loaded report, by itself: each problem in one sentence, none where it is whole."""
    problems = list(_origin(report))
    try:
        planned = planned_for(report)
    except ContractError as error:
        return [*problems, f"the run asks for what this suite doesn't have: {error}"]
    missing = list(_completeness(report, planned))
    problems += missing
    known = {case.id: case for case in planned.cases}
    problems += _plausibility(report, known)
    return problems if missing else [*problems, *_consequences(report, planned, known)]


def _origin(report: dict[str, Any]) -> Iterator[str]:
    if report["hash"] != (found := data.hash_of(report)):
        yield f"hash: the report says {report['hash'][:16]}..., its content has {found[:16]}...: it was changed"
    suite, own = report["suite"], suite_digest()
    if suite["digest"] != own:
        yield (
            f"suite digest: the report's is {suite['digest'][:16]}..., this suite's is {own[:16]}...: "
            "another version, or altered"
        )
    if suite["version"] != SUITE_VERSION:
        yield f"suite version: the report's is {suite['version']!r}, this suite's is {SUITE_VERSION!r}"
    evidence = evidence_of(_device(report), report.get("ladder"))
    if report["evidence"] != {"numerics": evidence.numerics, "artifact": evidence.artifact}:
        yield f"evidence: what is there proves {evidence.numerics} numerics and artifact {evidence.artifact}, no other"


def _completeness(report: dict[str, Any], planned: Planned) -> Iterator[str]:
    wanted, found = [case.id for case in planned.cases], Counter(case["id"] for case in report["cases"])
    yield from _named("missing", (id for id in wanted if id not in found))
    yield from _named("twice", (id for id, number in found.items() if number > 1))
    yield from _named("not planned for this run", found.keys() - set(wanted))


def _named(what: str, ids: Iterable[str]) -> Iterator[str]:
    ordered = sorted(ids)
    if ordered:
        more = f" and {len(ordered) - _MOST_NAMED} more" if len(ordered) > _MOST_NAMED else ""
        yield f"cases {what}: {', '.join(ordered[:_MOST_NAMED])}{more}"


def _plausibility(report: dict[str, Any], known: dict[str, Case]) -> Iterator[str]:
    """Verdicts that their own evidence contradicts."""
    for entry in report["cases"]:
        case, name = known.get(entry["id"]), f"case {entry['id']}"
        if case is not None:
            if entry["operator"] != case.check.operator:
                yield f"{name}: its operator is {case.check.operator}, not {entry['operator']}"
            if entry["features"] != sorted(case.check.features()):
                yield f"{name}: its features are others"
        for knob, f in entry["filters"].items():
            if f["credited"] != Filtered(f["t"], f["noise"]).credited:
                yield f"{name}: filter {knob}: noise {f['noise']:.3g} and credit contradict each other"
        if entry["verdict"] == "PASS":
            yield from (f"{name}: passed, {why}" for why in _against_pass(entry))
        elif entry["verdict"] != "UNSUPPORTED" and not any(entry["messages"]):
            yield f"{name}: {entry['verdict']} without a word of why"


def _against_pass(entry: dict[str, Any]) -> Iterator[str]:
    if entry["ratio"] is not None and entry["ratio"] > 1 + _ROUNDING:
        yield f"with ratio {entry['ratio']:.3g}"
    for knob, f in entry["filters"].items():
        if f["credited"] and abs(f["t"]) > Filtered.FAIL_ABOVE + _ROUNDING:
            yield f"with {f['t']:+.2f} of the fault {knob} in it"
    if entry["messages"] or entry["reasons"]:
        yield "and has findings"


def _consequences(report: dict[str, Any], planned: Planned, known: dict[str, Case]) -> Iterator[str]:
    """Whatever follows from the cases, made again."""
    run, results = report["run"], [_result(entry) for entry in report["cases"]]
    asked = find_profiles(run["profiles"])
    by_id = {result.case: result for result in results}
    held = [hold(profile, planned.pool, by_id) for profile in asked or PROFILES]
    for section, content in data.derived(planned.cases, results, held).items():
        if report[section] != content:
            yield f"{section}: does not follow from the cases"
    whole = not (run["cases"] or run["filter"] or run["shard"])
    reason = why_red(results, held, asked=bool(asked), whole=whole)
    if (ladder := report.get("ladder")) is not None:
        yield from ladder_section.contradictions(ladder, report["device"], results)
        reason = reason or ladder_section.failure(ladder)
    if report["verdict"] != {"green": not reason, "reason": reason}:
        yield f"verdict: from the cases follows {f'red: {reason}' if reason else 'green'}"


def _result(entry: dict[str, Any]) -> Result:
    return Result(
        case=entry["id"],
        operator=entry["operator"],
        verdict=Verdict(entry["verdict"]),
        provider=entry["provider"],
        tier=entry["tier"],
        ratio=entry["ratio"],
        elements=entry["elements"],
        filters={knob: Filtered(f["t"], f["noise"]) for knob, f in entry["filters"].items()},
        messages=tuple(entry["messages"]),
        notes=tuple(entry.get("notes", ())),
        reasons=tuple(Reason(**reason) for reason in entry["reasons"]),
        seconds=entry["seconds"],
    )


def _device(report: dict[str, Any]) -> DeviceInfo:
    d = report["device"]
    return DeviceInfo("", 0, d["name"], d["arch"], d["memory_bytes"], tuple(d["features"]), d["numerics"])


# ---- run again


def same_place(report: dict[str, Any], info: BackendInfo, device: DeviceInfo) -> bool:
    """Whether the report was made on hardware and versions like these, so that its ratios have to come out again."""
    there, backend = report["device"], report["backend"]
    return (
        report["host"] == host()
        and (backend["name"], backend["version"], backend["interface"]) == (info.name, info.version, INTERFACE_VERSION)
        and (there["name"], there["arch"], there["numerics"]) == (device.name, device.arch, device.numerics)
        and there["features"] == list(device.features)
    )


def draw(report: dict[str, Any], number: int, seed: int) -> list[str]:
    """So many of the cases that ran, at random, in the report's order."""
    ran = [entry["id"] for entry in report["cases"] if entry["verdict"] not in ("EXCLUDED", "NOT_RUN")]
    chosen = set(random.Random(seed).sample(range(len(ran)), min(number, len(ran))))
    return [id for index, id in enumerate(ran) if index in chosen]


@dataclass(frozen=True)
class Disagreement:
    """A case that did not come out as the report says."""

    case: str
    what: str
    reported: str
    again: str

    def __str__(self) -> str:
        return f"case {self.case}: {self.what}: the report says {self.reported}, run again: {self.again}"


def rerun(report: dict[str, Any], ids: Sequence[str], again: Again, *, same: bool) -> list[Disagreement]:
    """Run cases again and compare. same: on one machine with the same versions, where ratios repeat.

    A case that disagrees only in its ratio is run once more: where that differs from the first time, the case isn't
    deterministic, and its ratio may be as far off as on another machine.
    """
    known = {case.id: case for case in planned_for(report).cases}
    entries = {entry["id"]: entry for entry in report["cases"]}
    found: list[Disagreement] = []
    doubtful: list[Result] = []
    for result in again([known[id] for id in ids]):
        entry = entries[result.case]
        if result.verdict != entry["verdict"]:
            found.append(Disagreement(result.case, "verdict", entry["verdict"], result.verdict.value))
        elif not _agree(entry["ratio"], data.rounded(result).ratio, same=same):
            doubtful.append(result)
    repeated = again([known[result.case] for result in doubtful]) if same and doubtful else ()
    unstable = {b.case for a, b in zip(doubtful, repeated, strict=False) if a.ratio != b.ratio}
    for result in doubtful:
        ratio, reported = data.rounded(result).ratio, entries[result.case]["ratio"]
        if not (result.case in unstable and _agree(reported, ratio, same=False)):
            found.append(Disagreement(result.case, "ratio", f"{reported}", f"{ratio}"))
    return found


def _agree(reported: float | None, ratio: float | None, *, same: bool) -> bool:
    if reported is None or ratio is None:
        return reported is ratio
    if same:
        return math.isclose(reported, ratio, rel_tol=SAME)
    low, high = sorted((reported, ratio))
    return high <= HARMLESS or high <= FACTOR * low
