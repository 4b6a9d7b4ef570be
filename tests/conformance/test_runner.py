"""Whatever becomes of a case, it is reported exactly once, under the right verdict."""

from __future__ import annotations

import datetime
import time
from dataclasses import dataclass
from typing import ClassVar

import pytest

from opsocket.operators import FormatError, Reason, Support
from opsocket_conformance.case import Case, Check
from opsocket_conformance.cases import cases_of
from opsocket_conformance.exclusions import Exclusion, excluded, load_exclusions
from opsocket_conformance.runner import run
from opsocket_conformance.verdicts import Result, Verdict, count, failure_of

NO = (Reason("head_dim", "head_dim_qk", 64, [128]),)


@dataclass(frozen=True)
class Behaving(Check):
    """A check that does what its field says."""

    name: ClassVar[str] = "behaving"
    how: str = "well"

    operator = "nothing"

    def features(self):
        return frozenset()

    def run(self, bench, rng):
        if self.how == "interrupts":
            raise KeyboardInterrupt
        if self.how == "crashes":
            raise ZeroDivisionError("of its own")
        if self.how == "hangs":
            time.sleep(30)
        if self.how == "fails":
            bench.fail("as it should")


def test_every_planned_case_is_reported_once(session):
    ways = ("well", "crashes", "fails", "hangs", "well", "interrupts", "well", "fails")
    cases = [Case(Behaving(how), draw) for draw, how in enumerate(ways)]
    seen = []
    results = run(cases, session, limit_s=0.2, on_result=seen.append)
    assert results == seen
    assert [r.case for r in results] == [case.id for case in cases]
    assert [str(r.verdict) for r in results] == [
        "PASS",
        "CRASH",
        "FAIL",
        "CRASH",
        "PASS",
        "NOT_RUN",
        "NOT_RUN",
        "NOT_RUN",
    ]
    assert "ZeroDivisionError: of its own" in results[1].messages[-1]
    assert "TimeLimit" in results[3].messages[-1]
    assert failure_of(count(results), []) == "2 CRASH"


def test_a_case_reproduces_bit_for_bit(session):
    cases = [c for c in cases_of("smoke") if c.check.name in ("attention", "matmul", "sample", "cache_write")][::9]
    first, second, other = (run(cases, session, seed=seed) for seed in (0, 0, 1))
    facts = [[(r.case, r.verdict, r.ratio, r.filters) for r in results] for results in (first, second, other)]
    assert facts[0] == facts[1]
    assert facts[0] != facts[2]
    assert all(r.verdict is Verdict.PASS for r in other)


def test_a_session_that_is_not_in_place_is_given_no_outputs(out_of_place):
    cases = [case for case in cases_of("smoke") if case.check.operator not in ("cache_move", "capture")][::5]
    assert [r for r in run(cases, out_of_place) if r.verdict is not Verdict.PASS] == []


def test_an_exclusion_holds_until_its_day(session):
    cases = [Case(Behaving("fails"), draw) for draw in range(3)]
    later = datetime.date.today() + datetime.timedelta(days=9)
    past = datetime.date.today() - datetime.timedelta(days=1)
    exclusions = (Exclusion("behaving[how=fails]#0", "known", later), Exclusion("behaving[*#1", "known", past))
    assert [str(r.verdict) for r in run(cases, session, exclusions=exclusions)] == ["EXCLUDED", "FAIL", "FAIL"]
    assert excluded("behaving[how=fails]#0", exclusions[:1], later) is None


_DATED = "expires: 2030-01-01}"


@pytest.mark.parametrize(
    "text",
    [
        "case: x",
        ":",
        "- {case: x, reason: y}",
        "- {case: x, reason: '', " + _DATED,
        "- {case: '', reason: y, " + _DATED,
        "- {case: x, reason: y, expires: soon}",
    ],
)
def test_an_exclusion_without_reason_or_date_is_refused(tmp_path, text):
    path = tmp_path / "exclude.yaml"
    path.write_text(text)
    with pytest.raises(FormatError):
        load_exclusions(path)


def test_exclusions_are_read(tmp_path):
    path = tmp_path / "exclude.yaml"
    path.write_text("- {case: 'attention[*', reason: driver 1.2, expires: 2030-01-01}\n")
    assert load_exclusions(path) == (Exclusion("attention[*", "driver 1.2", datetime.date(2030, 1, 1)),)


@pytest.mark.parametrize(
    ("verdicts", "broken", "reason"),
    [
        ([], [], "no case was planned"),
        (["PASS", "PASS"], [], ""),
        (["PASS", "UNSUPPORTED"], [], ""),
        (["UNSUPPORTED"], [], "nothing passed: 1 UNSUPPORTED"),
        (["EXCLUDED"], [], "nothing passed: 1 EXCLUDED"),
        (["PASS", "NOT_RUN"], [], "1 NOT_RUN"),
        (["PASS", "FAIL", "CRASH"], [], "1 CRASH"),
        (["PASS"], ["decoder"], "not held: decoder"),
    ],
)
def test_what_makes_a_run_red(verdicts, broken, reason):
    results = [Result(str(i), "nothing", Verdict(v)) for i, v in enumerate(verdicts)]
    assert failure_of(count(results), broken) == reason


# ---- claims and denials, both ways, and who ran

CASE = "attention[]#0"


def test_a_consistent_denial_is_unsupported(session, judge):
    result = judge("attention[exact=0]#0")
    assert result.verdict is Verdict.UNSUPPORTED
    assert [reason.code for reason in result.reasons] == ["host_exact"]


def test_a_denial_that_plan_does_not_share_fails(judge):
    result = judge(CASE, "attention", supports=lambda right: Support("none", reasons=NO))
    assert result.verdict is Verdict.FAIL
    assert result.messages == ("attention: supports says no, plan says yes",)


def test_a_denial_without_reasons_fails(judge):
    result = judge(CASE, "attention", supports=lambda right: Support("none"))
    assert result.verdict is Verdict.FAIL
    assert result.messages[0] == "attention: denied without a reason"


def test_a_cache_that_no_layout_holds_is_unsupported(judge):
    """Blocks of 8 tokens are no whole tiles, and 65 codes of 4 bits do not fill bytes."""
    assert judge("cache_write[d=65,bs=8,kv=i4.token_head]#0").verdict is Verdict.UNSUPPORTED


def test_other_reasons_from_plan_fail(session, judge):
    case = "attention[d=65,bs=8,kv=i4.token_head]#0"
    assert judge(case).verdict is Verdict.UNSUPPORTED
    result = judge(case, "attention", supports=lambda right: Support("none", reasons=NO))
    assert result.verdict is Verdict.FAIL
    assert "supports denies with" in result.messages[0]


def test_a_claimed_request_that_plan_refuses_fails(judge):
    case = "attention[d=65,bs=8,kv=i4.token_head]#0"
    result = judge(case, "attention", supports=lambda right: Support("native", "torch"))
    assert result.verdict is Verdict.CRASH
    assert result.messages[0].startswith("attention: claimed by supports, and plan refuses")


def test_a_kernel_that_does_not_report_itself_fails(judge):
    result = judge(CASE, "attention", reports=False)
    assert result.verdict is Verdict.FAIL
    assert result.messages == ("attention: no kernel reported itself",)


def test_another_provider_than_supports_named_fails(judge):
    result = judge(CASE, "attention", provider="fallback")
    assert result.verdict is Verdict.FAIL
    assert "'fallback' ran" in result.messages[0]
