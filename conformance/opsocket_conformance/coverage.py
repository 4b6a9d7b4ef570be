"""What a run covered of attention's knobs, and which faults its matched filters could see."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from opsocket_conformance.case import Case
from opsocket_conformance.cover import coverage
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.probes import KNOBS, TRIPLED, feasible
from opsocket_conformance.verdicts import Result, Verdict


def attention_coverage(cases: Sequence[Case], results: Sequence[Result]) -> dict[str, int]:
    """Pairs of attention's knob values, and triples of those that pick a kernel, that ran in some case, and how many
    the interface defines. Credited: in a case that has a matched filter which sees, and sees these knobs."""
    found = {r.case: r for r in results if r.verdict in (Verdict.PASS, Verdict.FAIL)}
    ran = [case.check for case in cases if case.id in found and type(case.check) is Attention]
    seen = [found[case.id] for case in cases if case.id in found and type(case.check) is Attention]
    rows = [knob_values(check) for check in ran]
    credited = [_credited(row, result) for row, result in zip(rows, seen, strict=True)]
    tripled = {name: KNOBS[name] for name in TRIPLED}
    pairs, of = coverage(rows, KNOBS, feasible)
    triples, of_triples = coverage(rows, tripled, feasible, strength=3)
    return {
        "pairs": pairs,
        "of": of,
        "triples": triples,
        "of_triples": of_triples,
        "credited_pairs": coverage(credited, KNOBS, feasible)[0],
        "credited_triples": coverage(credited, tripled, feasible, strength=3)[0],
    }


_FILTERED: Final = {
    "cap": "softcap",
    "alibi": "alibi",
    "sinks": "sinks",
    "left": "window_left",
    "right": "window_right",
}
"""Knobs that have a matched filter of their own, and how its name begins."""


def _credited(row: Mapping[str, Any], result: Result) -> dict[str, Any]:
    """A case's row without the knobs that are on and drowned; nothing where no filter saw anything."""
    seeing = [name for name, reading in result.filters.items() if reading.credited]
    if not seeing:
        return {}
    drowned = {
        knob
        for knob, filter_name in _FILTERED.items()
        if row[knob] not in (None, False) and not any(name.startswith(filter_name) for name in seeing)
    }
    return {knob: value for knob, value in row.items() if knob not in drowned}


def knob_values(check: Attention) -> dict[str, Any]:
    """A case's row of the covering array."""
    row = {name: getattr(check, name) for name in KNOBS if name != "heads"}
    return row | {"heads": (check.hq, check.hkv)}


def filter_credit(results: Sequence[Result]) -> dict[str, dict[str, float]]:
    """For each knob: cases whose matched filter could see a fault in it, and the largest |t| among them."""
    knobs: dict[str, dict[str, float]] = {}
    for result in results:
        for knob, reading in result.filters.items():
            entry = knobs.setdefault(knob, {"credited": 0, "blind": 0, "largest_t": 0.0})
            entry["credited" if reading.credited else "blind"] += 1
            if reading.credited:
                entry["largest_t"] = max(entry["largest_t"], abs(reading.t))
    return dict(sorted(knobs.items()))
