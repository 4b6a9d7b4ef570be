"""The report: one JSON document, whose schema is published beside it as ``report.schema.json``."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from opsocket.operators import INTERFACE_VERSION, BackendInfo, DeviceInfo
from opsocket_conformance import SUITE_VERSION
from opsocket_conformance.case import Case
from opsocket_conformance.coverage import attention_coverage, filter_credit
from opsocket_conformance.evidence import evidence_of, host, suite_digest
from opsocket_conformance.profiles import Held
from opsocket_conformance.report.text import clipped
from opsocket_conformance.verdicts import Filtered, Result, Verdict, count

SCHEMA_VERSION: Final = 2
_MOST_MESSAGES, _LONGEST_MESSAGE = 100, 8000


@dataclass(frozen=True)
class Run:
    """What was asked: the options that a run can be repeated with. backend: as given to --backend; pins: to --pin;
    cases: to --case. jobs: worker processes. resumed: how many results are those of a run that ended early."""

    backend: str
    pins: Mapping[str, str]
    tier: str
    seed: int
    profiles: tuple[str, ...]
    shard: str
    filter: str
    cases: tuple[str, ...] = ()
    jobs: int = 1
    resumed: int = 0


def build(
    run: Run,
    info: BackendInfo,
    device: DeviceInfo,
    cases: Sequence[Case],
    results: Sequence[Result],
    held: Sequence[Held],
    failure: str,
    seconds: float,
    ladder: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The whole report, JSON-ready and sealed. failure: why the run is red, "" for green. ladder: its section."""
    evidence = evidence_of(device, ladder)
    by_id = {case.id: case for case in cases}
    results = [rounded(result) for result in results]
    report = {
        "schema": SCHEMA_VERSION,
        "suite": {"version": SUITE_VERSION, "digest": suite_digest()},
        "run": {
            "backend": run.backend,
            "pins": dict(run.pins),
            "tier": run.tier,
            "seed": run.seed,
            "profiles": list(run.profiles),
            "shard": run.shard,
            "filter": run.filter,
            "cases": list(run.cases),
            "jobs": run.jobs,
            **({"resumed": run.resumed} if run.resumed else {}),
            "started": (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
        },
        "backend": {"name": info.name, "version": info.version, "vendor": info.vendor, "interface": INTERFACE_VERSION},
        "device": {
            "id": str(device),
            "name": device.name,
            "arch": device.arch,
            "memory_bytes": device.memory_bytes,
            "features": list(device.features),
            "numerics": device.numerics,
        },
        "host": host(),
        "evidence": {"numerics": evidence.numerics, "artifact": evidence.artifact},
        "verdict": {"green": not failure, "reason": failure},
        **({} if ladder is None else {"ladder": dict(ladder)}),
        **derived(cases, results, held),
        "cases": [_case(by_id[r.case], r) for r in results],
    }
    return seal(report)


def derived(cases: Sequence[Case], results: Sequence[Result], held: Sequence[Held]) -> dict[str, Any]:
    """All of a report that follows from its cases: `verify` makes it again, and compares."""
    return {
        "counts": _counts(count(results)),
        "profiles": [_profile(h) for h in held],
        "operators": operators(results),
        "coverage": attention_coverage(cases, results),
        "filters": filter_credit(results),
    }


def seal(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report with the hash of all else in it, which comes last. Whoever adds a section seals it anew."""
    return {**{key: value for key, value in report.items() if key != "hash"}, "hash": hash_of(report)}


def hash_of(report: Mapping[str, Any]) -> str:
    """SHA-256 over a report without its hash, as JSON with sorted keys and no spaces, in ASCII."""
    content = {key: value for key, value in report.items() if key != "hash"}
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def _counts(counts: Mapping[Verdict, int]) -> dict[str, int]:
    return {verdict.value: number for verdict, number in counts.items()}


def _profile(held: Held) -> dict[str, Any]:
    return {
        "name": held.profile,
        "verdict": held.verdict,
        "by": list(held.by),
        "counts": _counts(held.counts),
        "missing": list(held.missing),
    }


def operators(results: Sequence[Result]) -> list[dict[str, Any]]:
    """One row per operator: counts, the worst ratio, and who ran it."""
    rows = []
    for name in sorted({result.operator for result in results}):
        mine = [r for r in results if r.operator == name]
        ratios = [r.ratio for r in mine if r.ratio is not None]
        rows.append(
            {
                "operator": name,
                "cases": len(mine),
                "counts": _counts(count(mine)),
                "worst_ratio": max(ratios, default=None),
                "providers": sorted({r.provider for r in mine if r.provider}),
                "tiers": sorted({r.tier for r in mine if r.tier}),
            }
        )
    return rows


def rounded(result: Result) -> Result:
    """A result as a report can say it: what follows from the report is then what followed from the run."""
    return replace(
        result,
        ratio=None if result.ratio is None else _number(result.ratio),
        filters={knob: Filtered(_number(f.t), _number(f.noise)) for knob, f in result.filters.items()},
        messages=tuple(clipped(message, _LONGEST_MESSAGE) for message in result.messages[:_MOST_MESSAGES]),
        notes=tuple(clipped(note, _LONGEST_MESSAGE) for note in result.notes[:_MOST_MESSAGES]),
    )


def _case(case: Case, result: Result) -> dict[str, Any]:
    return {
        "id": result.case,
        "operator": result.operator,
        "features": sorted(case.check.features()),
        "verdict": result.verdict.value,
        "provider": result.provider,
        "tier": result.tier,
        "ratio": result.ratio,
        "elements": result.elements,
        "filters": {
            knob: {"t": f.t, "noise": f.noise, "credited": f.credited} for knob, f in sorted(result.filters.items())
        },
        "messages": list(result.messages),
        **({"notes": list(result.notes)} if result.notes else {}),
        "reasons": [reason.to_json() for reason in result.reasons],
        "seconds": round(result.seconds, 4),
    }


def _number(value: float) -> float:
    """Nine digits. JSON has no infinity and no NaN: what is beyond every bound is 1e308."""
    if abs(value) < 1e308:
        return float(f"{value:.9g}")
    return -1e308 if value < 0 else 1e308
