"""The report: one JSON document, whose schema is published beside it as ``report.schema.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import Any

from opsocket.operators import INTERFACE_VERSION, FormatError, Session
from opsocket_conformance import SUITE_VERSION
from opsocket_conformance.case import Case
from opsocket_conformance.cover import coverage
from opsocket_conformance.evidence import evidence_of, host, suite_digest
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.probes import KNOBS, feasible
from opsocket_conformance.profiles import Held
from opsocket_conformance.verdicts import Result, Verdict, count

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Run:
    """What was asked: the options that a run can be repeated with. backend: as given to --backend; pins: to --pin."""

    backend: str
    pins: Mapping[str, str]
    tier: str
    seed: int
    profiles: tuple[str, ...]
    shard: str
    filter: str


def build(
    run: Run,
    session: Session,
    cases: Sequence[Case],
    results: Sequence[Result],
    held: Sequence[Held],
    failure: str,
    seconds: float,
) -> dict[str, Any]:
    """The whole report, JSON-ready. failure: why the run is red, "" for green."""
    device, info = session.device, session.backend.info
    evidence = evidence_of(device)
    membership = {case.id: case for case in cases}
    return {
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
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": round(seconds, 3),
        },
        "backend": {"name": info.name, "version": info.version, "vendor": info.vendor, "interface": INTERFACE_VERSION},
        "device": {
            "id": str(device),
            "name": device.name,
            "arch": device.arch,
            "memory_bytes": device.memory_bytes,
            "features": list(device.features),
            "emulated": device.emulated,
        },
        "host": host(),
        "evidence": {"numerics": evidence.numerics, "artifact": evidence.artifact},
        "verdict": {"green": not failure, "reason": failure},
        "counts": _counts(count(results)),
        "profiles": [_profile(h) for h in held],
        "operators": operators(results),
        "coverage": attention_coverage(cases, results),
        "filters": filter_credit(results),
        "cases": [_case(membership[r.case], r) for r in results],
    }


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
                "worst_ratio": _number(max(ratios)) if ratios else None,
                "providers": sorted({r.provider for r in mine if r.provider}),
                "tiers": sorted({r.tier for r in mine if r.tier}),
            }
        )
    return rows


def attention_coverage(cases: Sequence[Case], results: Sequence[Result]) -> dict[str, int]:
    """Pairs of attention's knob values that ran in some case, of those that the interface defines."""
    ran = {r.case for r in results if r.verdict in (Verdict.PASS, Verdict.FAIL)}
    rows = []
    for case in cases:
        check = case.check
        if case.id in ran and type(check) is Attention:
            row = {name: getattr(check, name) for name in KNOBS if name != "heads"}
            rows.append(row | {"heads": (check.hq, check.hkv)})
    have, total = coverage(rows, KNOBS, feasible)
    return {"pairs": have, "of": total}


def filter_credit(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """For each knob: cases whose matched filter could see a fault in it, and the largest |t| among them."""
    knobs: dict[str, dict[str, float]] = {}
    for result in results:
        for knob, reading in result.filters.items():
            entry = knobs.setdefault(knob, {"credited": 0, "blind": 0, "largest_t": 0.0})
            entry["credited" if reading.credited else "blind"] += 1
            if reading.credited:
                entry["largest_t"] = max(entry["largest_t"], _number(abs(reading.t)))
    return dict(sorted(knobs.items()))


def _case(case: Case, result: Result) -> dict[str, Any]:
    return {
        "id": result.case,
        "operator": result.operator,
        "features": sorted(case.check.features()),
        "verdict": result.verdict.value,
        "provider": result.provider,
        "tier": result.tier,
        "ratio": None if result.ratio is None else _number(result.ratio),
        "elements": result.elements,
        "filters": {
            knob: {"t": _number(f.t), "noise": _number(f.noise), "credited": f.credited}
            for knob, f in result.filters.items()
        },
        "messages": list(result.messages),
        "reasons": [reason.to_json() for reason in result.reasons],
        "seconds": round(result.seconds, 4),
    }


def _number(value: float) -> float:
    """JSON has no infinity and no NaN: what is beyond every bound is 1e308."""
    return float(f"{value:.6g}") if abs(value) < 1e308 else 1e308


def schema() -> dict[str, Any]:
    """The published JSON schema of reports."""
    text = resources.files("opsocket_conformance").joinpath("report/report.schema.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def load(path: str | Path) -> dict[str, Any]:
    """Read a report; `FormatError` where the file is not one."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise FormatError(path, "file", str(error)) from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA_VERSION:
        raise FormatError(path, "schema", f"wanted a conformance report of schema {SCHEMA_VERSION}")
    cases = data.get("cases")
    wanted = {"id", "verdict", "ratio", "seconds"}
    if not isinstance(cases, list) or not all(isinstance(case, dict) and wanted <= set(case) for case in cases):
        raise FormatError(path, "cases", f"wanted a list of cases, each with {sorted(wanted)}")
    return data
