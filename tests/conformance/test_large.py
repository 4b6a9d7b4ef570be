"""The large tier in small: its checks pass, see offsets that wrap around, and say where there is no room."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opsocket.operators import Memory
from opsocket_conformance.case import Case, parse_case
from opsocket_conformance.cases import cases_of
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.large import cache, rows
from opsocket_conformance.large.cache import LargeCache
from opsocket_conformance.large.rows import LargeRows
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.profiles import PROFILES
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict

ELEMENTS, K = 1 << 18, 256
BOUNDARY_SLOT = ELEMENTS // (2 * 32)
SMALL = {"hkv": 2, "d": 32, "dv": 32, "elements": ELEMENTS}
WRITE, READ = LargeCache("cache_write", **SMALL), LargeCache("cache_read", **SMALL)
MOVE, COPY = LargeCache("cache_move", **SMALL), LargeCache("cache_copy_blocks", **SMALL)
ATTEND = LargeCache("attention", **SMALL)
EMBED = LargeRows("embedding", k=K, elements=ELEMENTS)
TAKE = LargeRows("take_rows", k=K, elements=ELEMENTS)


def wrapped(values, boundary):
    values = np.asarray(values)
    return np.where(values >= boundary, values - boundary, values)


def field(name, boundary):
    return {"batch": lambda batch: replace(batch, **{name: wrapped(getattr(batch, name), boundary)})}


def ids_wrapped(args, kwargs):
    boundary = ELEMENTS // K
    at = 0 if args[0].ndim == 1 else 1
    changed = args[at] - boundary * (args[at] >= boundary)
    return (*args[:at], changed, *args[at + 1 :]), kwargs


FAULTS = {
    "read": (READ, "cache_read", field("slots", BOUNDARY_SLOT)),
    "move": (MOVE, "cache_move", field("src_slots", BOUNDARY_SLOT)),
    "attention": (ATTEND, "attention", field("block_table", BOUNDARY_SLOT // 16)),
    "embedding": (EMBED, "embedding", {"args": ids_wrapped}),
    "take_rows": (TAKE, "take_rows", {"args": ids_wrapped}),
}


@pytest.mark.parametrize("check", [WRITE, READ, MOVE, COPY, ATTEND, EMBED, TAKE], ids=lambda check: check.op)
def test_the_checks_pass_on_the_cpu(check, session):
    result = run_case(Case(check), session, 0, 60.0)
    assert result.verdict is Verdict.PASS, result.messages


@pytest.mark.parametrize("name", FAULTS)
def test_offsets_that_wrap_around_are_seen(name, session):
    check, op, hooks = FAULTS[name]
    result = run_case(Case(check), FaultySession(session, Fault(op, **hooks)), 0, 60.0)
    assert result.verdict is Verdict.FAIL, result


def test_no_room_is_unsupported_by_reason_of_memory(session):
    class Small(FaultySession):
        def memory(self):
            return Memory(900, 1000)

    for check in (ATTEND, EMBED, TAKE):
        result = run_case(Case(check), Small(session, Fault("")), 0, 60.0)
        assert result.verdict is Verdict.UNSUPPORTED
        assert [reason.code for reason in result.reasons] == ["memory"]
    beyond = run_case(Case(replace(TAKE, elements=1 << 33)), session, 0, 60.0)
    assert beyond.verdict is Verdict.UNSUPPORTED


def test_the_tier_holds_what_no_other_does_and_is_in_no_profile():
    large = {*cache.cases(), *rows.cases()}
    assert all(case.tier == "large" for case in large)
    assert large <= set(cases_of("large"))
    assert not large & set(cases_of("full"))
    assert not any(profile.includes(case.check.features()) for case in large for profile in PROFILES)
    assert all(parse_case(case.id, CHECKS) == Case(case.check) for case in large)
