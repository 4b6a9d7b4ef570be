"""Every fault of the operators other than attention is found, and by cases that a right backend passes."""

from __future__ import annotations

import random
from functools import cache

import pytest

from opsocket_conformance.case import Case
from opsocket_conformance.cases import cases_of
from opsocket_conformance.operators import (
    add,
    argmax,
    matmul,
    merge_states,
    moe_combine,
    moe_route,
    moe_sort,
    rms_norm,
    rope,
    sample,
    silu_mul,
    take_rows,
)
from opsocket_conformance.operators.cache import probes as cache_operators
from opsocket_conformance.power.catalogue import (
    cache_copies,
    cache_writes,
    experts,
    int8_products,
    merge,
    model,
    positions,
    routing,
    sampling,
    weights,
)
from opsocket_conformance.power.catalogue import matmul as matmul_faults
from opsocket_conformance.power.fault import Fault, FaultySession
from opsocket_conformance.power.host import recomputed
from opsocket_conformance.power.int8 import REMEMBERED, activation_of, by_pieces
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict

FAULTS = tuple(
    fault
    for module in (
        merge,
        cache_writes,
        cache_copies,
        weights,
        matmul_faults,
        int8_products,
        model,
        positions,
        routing,
        experts,
        sampling,
    )
    for fault in module.FAULTS
)
_FAMILIES = (
    add, argmax, cache_operators, matmul, merge_states, moe_combine, moe_route, moe_sort, rms_norm, rope, sample,
    silu_mul, take_rows,
)  # fmt: skip


@cache
def _cases() -> dict[str, list[Case]]:
    """The operators' own cases of the default tier by operator, in an order that mixes their configurations."""
    mine = {case.id for family in _FAMILIES for case in family.cases()}
    cases: dict[str, list[Case]] = {}
    for case in cases_of("default"):
        if case.id in mine:
            cases.setdefault(case.check.operator, []).append(case)
    for some in cases.values():
        random.Random(0).shuffle(some)
    return cases


def _first(fault: Fault) -> list[Case]:
    """The cases of a fault's operator, those first that should see it."""
    return sorted(_cases()[fault.op], key=lambda case: not any(text in case.id for text in fault.telling))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_is_found(session, fault):
    for case in _first(fault):
        result = run_case(case, FaultySession(session, fault), 0, 60.0)
        if result.verdict is Verdict.FAIL:
            break
    else:
        pytest.fail("no case of its operator found it")
    right = run_case(case, session, 0, 60.0)
    assert (right.verdict, right.messages) == (Verdict.PASS, ())


@pytest.mark.parametrize(
    ("op", "run"),
    [
        ("merge_states", merge.right),
        ("matmul", matmul_faults.product()),
        ("grouped_matmul", matmul_faults.grouped()),
        ("rms_norm", model.rms_norm()),
        ("silu_mul", model.silu_mul()),
        ("add", model.add()),
        ("moe_route", routing.route()),
        ("moe_sort", experts.sort()),
        ("moe_combine", experts.combine()),
        ("sample", sampling.sample()),
    ],
)
def test_the_kernels_that_faults_are_put_into_are_right(session, op, run):
    for case in _cases()[op][:24]:
        fault = Fault(op, run=run, session=REMEMBERED if "matmul" in op else {})
        result = run_case(case, FaultySession(session, fault), 0, 60.0)
        assert (case.id, result.verdict, result.messages) == (case.id, Verdict.PASS, ())


def test_the_int8_kernel_that_faults_are_put_into_is_right(session):
    fault = Fault("matmul", run=recomputed(by_pieces()), session=REMEMBERED, where=lambda r: activation_of(r) != "none")
    for case in [case for case in _cases()["matmul"] if "a8" in case.id][:60]:
        result = run_case(case, FaultySession(session, fault), 0, 60.0)
        assert (case.id, result.verdict, result.messages) == (case.id, Verdict.PASS, ())


def test_the_rotation_that_faults_are_put_into_is_right(session):
    plain = [case for case in _cases()["rope"] if "scaling" not in case.id]
    for case in plain[:24]:
        result = run_case(case, FaultySession(session, Fault("rope", run=positions.rope())), 0, 60.0)
        assert (case.id, result.verdict, result.messages) == (case.id, Verdict.PASS, ())


def test_the_cache_write_that_faults_are_put_into_is_right(session):
    for case in _cases()["cache_write"][:24]:
        fault = Fault("cache_write", run=cache_writes.quantized())
        result = run_case(case, FaultySession(session, fault), 0, 60.0)
        assert result.verdict in (Verdict.PASS, Verdict.UNSUPPORTED), (case.id, result.messages)


def test_names_are_unique_and_sentences_are_there():
    assert len({fault.name for fault in FAULTS}) == len(FAULTS)
    assert all(fault.wrong and fault.category for fault in FAULTS)
