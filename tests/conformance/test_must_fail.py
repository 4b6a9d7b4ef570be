"""The power of the suite, sampled: faults of the catalogue are found, right kernels of other kinds are not."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace

import pytest

from opsocket_conformance.case import parse_case
from opsocket_conformance.cases import cases_of
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.power.catalogue import all_faults, find_fault
from opsocket_conformance.power.devices import beside, cell, read_cells
from opsocket_conformance.power.fault import FaultySession
from opsocket_conformance.power.matrix import matrix, summary
from opsocket_conformance.power.self_test import KILLED, examine, in_order, in_process, sample, self_test
from opsocket_conformance.power.variants import VARIANTS
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict

DECODE, CHUNK = "attention[]#0", "attention[batch=chunk,x=peaky]#0"

NAMED = (
    "softcap ignored",
    "softcap after the mask",
    "no max-subtraction",
    "scale +1 %",
    "fully masked row = 1",
    "0 * V on masked keys",
    "1e-3 run-to-run noise",
    "batch-dependent results",
    "input overwritten: q",
)
"""What the best suite of the field let through, and this one was built to find."""

CASES = cases_of("default")


def _sampled(share: int) -> list[str]:
    """Every so-manieth fault, by the hash of its name: another sample where the catalogue grows, the same every day."""
    names = [fault.name for fault in all_faults() if not fault.isolated and fault.category != "control"]
    return [name for name in names if int(hashlib.sha256(name.encode()).hexdigest(), 16) % share == 0]


@pytest.fixture(scope="module")
def ask(session):
    return in_process(session)


def test_the_catalogue_is_large_and_says_what_it_is():
    faults = all_faults()
    assert len(faults) >= 100
    assert [name for name, n in Counter(fault.name for fault in faults).items() if n > 1] == []
    assert [fault.name for fault in faults if not (fault.op and fault.wrong)] == []
    assert {fault.category for fault in faults} > {"masks", "softmax", "paging", "contract", "claims", "control"}


@pytest.mark.parametrize("name", [f"attention: {name}" for name in NAMED])
@pytest.mark.parametrize("seed", [0, 3])
def test_what_others_let_through_is_found(session, name, seed):
    outcome = examine(find_fault(name), CASES, in_process(session, seed), enough=KILLED)
    assert outcome.verdict == "killed"


@pytest.mark.parametrize("name", _sampled(16))
def test_a_sampled_fault_is_found(ask, name):
    outcome = examine(find_fault(name), CASES, ask, enough=KILLED)
    assert (outcome.verdict, len(outcome.kills)) == ("killed", KILLED)


@pytest.mark.parametrize("fault", [f for f in all_faults() if f.category == "control"], ids=lambda f: f.name)
def test_a_control_is_red(ask, fault):
    numbers = [c for c in CASES if c.check.name in ("attention", "matmul", "rms_norm") and c.tier == "smoke"]
    mine = sample(in_order(fault, numbers), 3)
    verdicts = {ask(case, fault.name).verdict for case in mine}
    assert not verdicts & {Verdict.PASS, Verdict.NOT_RUN}


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_a_right_kernel_of_another_kind_passes(session, ask, variant):
    smoke = [c for c in CASES if c.check.operator == "attention" and c.tier == "smoke"]
    for case in smoke[:: len(smoke) // 12]:
        result = run_case(case, FaultySession(session, variant), 0, 60.0)
        assert (result.verdict, result.messages) == (ask(case, "").verdict, ())


def test_small_faults_are_seen_by_the_filter_and_named(session, ask):
    case = parse_case(CHUNK, CHECKS)
    result = ask(case, "attention: scale +1 %")
    assert result.filters["scale +1%"].t == pytest.approx(1.0, abs=0.1)
    right = ask(case, "").filters["scale +1%"]
    assert right.credited
    assert abs(right.t) < 0.1


def test_a_backend_that_asks_the_oracle_is_red(ask):
    result = ask(parse_case(DECODE, CHECKS), "control: the reference's output")
    assert result.verdict is Verdict.CRASH
    assert "OracleCalled" in result.messages[-1]


def test_outcomes_make_a_report(session):
    seen = []
    few = [parse_case(id, CHECKS) for id in (DECODE, CHUNK, "attention[lse=1]#0")]
    faults = [find_fault(f"attention: {name}") for name in ("not causal", "LSE in base 2", "segmentation fault")]
    outcomes = self_test(session, faults, few, 0, seen.append)
    assert outcomes == seen
    assert [(o.verdict, o.ran) for o in outcomes] == [("killed", 3), ("weak", 3), ("not run", 0)]
    assert json.loads(json.dumps(outcomes[0].to_json()))["kills"] == list(outcomes[0].kills)
    text = matrix(outcomes)
    assert summary(outcomes) in text
    assert "**attention: LSE in base 2** (weak, 1 of 3 cases)" in text
    assert "| masks | 1 | 1 | 0 | 0 | 0 |" in text


def test_cases_that_found_a_fault_elsewhere_are_tried_first(session):
    cases = [parse_case(id, CHECKS) for id in (DECODE, "attention[lse=1]#0", "attention[batch=mixed]#0", CHUNK)]
    known = [cases[1].id, cases[3].id]
    fault = find_fault("attention: scale applied twice")
    assert [case.id for case in in_order(fault, cases, known)][:2] == known
    assert examine(fault, cases, in_process(session), 1, known).kills == (cases[1].id,)


def test_a_case_that_nobody_saw_pass_kills_nothing(session):
    right = in_process(session)

    def interrupted(case, fault):
        return right(case, fault) if fault else replace(right(case, fault), verdict=Verdict.NOT_RUN)

    fault = find_fault("attention: scale applied twice")
    assert examine(fault, [parse_case(DECODE, CHECKS)], right).verdict == "weak"
    assert examine(fault, [parse_case(DECODE, CHECKS)], interrupted).verdict == "not run"


def test_a_control_ends_where_enough_cases_are_red(session):
    plain = [case for case in CASES if case.check.name == "attention" and case.tier == "smoke"]
    outcome = examine(find_fault("control: zeros"), plain, in_process(session), KILLED)
    assert (outcome.verdict, outcome.ran, len(outcome.kills)) == ("killed", KILLED, KILLED)


def test_a_page_of_devices_keeps_what_is_not_asked_anew():
    faults = [find_fault(f"attention: {name}") for name in ("not causal", "LSE in base 2", "softcap after the mask")]
    killed = {"verdict": "killed", "ran": 5, "kills": [DECODE, CHUNK, "attention[lse=1]#0"]}
    survived = {"verdict": "survived", "ran": 401, "kills": []}
    cells = {
        faults[0].name: {"sm_90": cell(killed), "gfx942": cell(survived)},
        faults[1].name: {"gfx942": cell({**killed, "verdict": "weak", "kills": [CHUNK]})},
        faults[2].name: {"sm_90": cell({**survived, "verdict": "not run"})},
    }
    page = beside(faults, cells, ("sm_90", "gfx942"))
    assert f"| attention: not causal |  | 3 of 5: `{DECODE}` | **survived**, 0 of 401 |" in page
    assert "| attention: softcap after the mask | yes | not asked | not asked |" in page
    assert "| all | 3 | 1 of 1 | 0 of 2 |" in page
    assert beside(faults, read_cells(page), ("sm_90", "gfx942")) == page
    # A device that is new finds the others' cells where they were.
    assert read_cells(beside(faults, read_cells(page), ("gfx942",)))[faults[0].name] == {
        "gfx942": "**survived**, 0 of 401"
    }
