"""Verification refuses what was altered, left out or does not repeat, and names the reason."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
from click.testing import CliRunner

from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.cli.verify import command
from opsocket_conformance.report import data
from opsocket_conformance.runner import run
from opsocket_conformance.verdicts import Verdict
from opsocket_conformance.verify import draw, rerun, wholeness


@pytest.fixture(scope="module")
def report(make_report):
    return make_report("matmul[")


@pytest.fixture
def edited(report):
    """edited(change) -> a copy that was changed and sealed anew, as one who knows how would."""

    def edited(change):
        other = copy.deepcopy(report)
        change(other)
        return data.seal(other)

    return edited


def test_a_true_report_is_whole(report):
    assert wholeness(report) == []
    assert wholeness(json.loads(json.dumps(report))) == []


def test_a_red_report_is_whole_too(make_report):
    def change(results):
        results[0] = replace(results[0], verdict=Verdict.FAIL, ratio=float("inf"), messages=("out[0]: nan",))
        results[1] = replace(results[1], verdict=Verdict.NOT_RUN, ratio=None, filters={}, messages=("interrupted",))

    red = make_report("add[", change)
    assert red["verdict"] == {"green": False, "reason": "1 FAIL"}
    assert wholeness(red) == []


def test_a_changed_byte_is_found_by_the_hash(report):
    (problem,) = wholeness(report | {"device": report["device"] | {"name": "another"}})
    assert problem.startswith("hash: ")


def first(report, verdict="PASS"):
    return next(case for case in report["cases"] if case["verdict"] == verdict)


def fail_first(report):
    first(report).update(verdict="FAIL", messages=["wrong"])


EDITS = [
    ("suite digest", lambda r: r["suite"].update(digest="0" * 64)),
    ("suite version", lambda r: r["suite"].update(version="9")),
    ("cases missing", lambda r: r["cases"].pop(3)),
    ("cases twice", lambda r: r["cases"].append(r["cases"][0])),
    ("cases not planned", lambda r: r["cases"][0].update(id="add[dtype=f32]#99")),
    ("counts", fail_first),
    ("verdict", fail_first),
    ("verdict", lambda r: r.update(verdict={"green": False, "reason": "bad luck"})),
    ("profiles", lambda r: r["profiles"][0].update(verdict="held", by=["bf16 bf16"])),
    ("operators", lambda r: r["operators"][0].update(worst_ratio=0.1)),
    ("filters", lambda r: next(iter(r["filters"].values())).update(credited=10**6)),
    ("coverage", lambda r: r["coverage"].update(pairs=10**6)),
    ("with ratio 1.5", lambda r: first(r).update(ratio=1.5)),
    ("and has findings", lambda r: first(r).update(messages=["wrong"])),
    ("without a word of why", lambda r: first(r).update(verdict="FAIL")),
    ("its features are others", lambda r: r["cases"][0].update(features=[])),
    ("its operator is", lambda r: r["cases"][0].update(operator="add")),
    ("evidence", lambda r: r["device"].update(numerics="emulated")),
    ("cases not planned", lambda r: r["run"].update(shard="1/2")),
    ("cases missing", lambda r: r["run"].update(filter="")),
    ("cases missing", lambda r: r["run"].update(tier="full")),
    ("doesn't have", lambda r: r["run"].update(profiles=["nope"])),
    ("doesn't have", lambda r: r["run"].update(cases=["nope"])),
    ("doesn't have", lambda r: r["run"].update(shard="5/2")),
]


@pytest.mark.parametrize(("reason", "change"), EDITS, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(EDITS)])
def test_what_was_edited_is_refused_even_when_sealed_anew(edited, reason, change):
    problems = wholeness(edited(change))
    assert any(reason in problem for problem in problems), problems
    assert not any(problem.startswith("hash") for problem in problems)


def credited_filter(report):
    case = next(c for c in report["cases"] if any(f["credited"] for f in c["filters"].values()))
    return next(f for f in case["filters"].values() if f["credited"])


def test_a_pass_that_its_filter_contradicts_is_refused(edited):
    problems = wholeness(edited(lambda r: credited_filter(r).update(t=0.9)))
    assert any("+0.90 of the fault" in problem for problem in problems)
    problems = wholeness(edited(lambda r: credited_filter(r).update(noise=0.5)))
    assert any("contradict each other" in problem for problem in problems)


# ---- run again


def test_a_draw_repeats_and_leaves_out_what_never_ran(report, edited):
    assert draw(report, 5, 1) == draw(report, 5, 1) != draw(report, 5, 2)
    assert len(draw(report, 10**6, 1)) == len(report["cases"])
    gone = edited(lambda r: r["cases"][0].update(verdict="NOT_RUN"))
    assert report["cases"][0]["id"] not in draw(gone, 10**6, 1)


def test_a_true_report_repeats(report, session):
    ids = draw(report, 8, 1)
    assert rerun(report, ids, lambda cases: run(cases, session), same=True) == []


def test_verdicts_and_ratios_that_do_not_repeat_are_told(report, session, edited):
    case = next(c for c in report["cases"] if c["ratio"])
    id, ratio = case["id"], case["ratio"]

    def told(same=True, **values):
        changed = edited(lambda r: next(c for c in r["cases"] if c["id"] == id).update(values))
        return [d.what for d in rerun(changed, [id], lambda cases: run(cases, session), same=same)]

    assert told(verdict="FAIL") == ["verdict"]
    assert told(ratio=ratio * (1 + 1e-5)) == ["ratio"]
    assert told(ratio=None) == ["ratio"]
    assert told(same=False, ratio=ratio * 1.5) == []
    assert told(same=False, ratio=100.0) == ["ratio"]


def test_a_case_that_never_repeats_is_given_the_wider_margin(report, session):
    case = next(c for c in report["cases"] if c["ratio"])
    runs = iter(range(1, 9))

    def unsteady(cases):
        return [replace(r, ratio=case["ratio"] * (1 + next(runs) / 100)) for r in run(cases, session)]

    assert rerun(report, [case["id"]], unsteady, same=True) == []


# ---- the command


def test_the_command_accepts_a_true_report_and_refuses_an_edited_one(report, edited, tmp_path):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(report))
    right = CliRunner().invoke(command, [str(file), "--rerun", "3", "--draw", "1"])
    assert right.exit_code == 0, right.output
    assert "3 of 3 came out the same" in right.output
    file.write_text(json.dumps(edited(lambda r: r["cases"].pop())))
    wrong = CliRunner().invoke(command, [str(file), "--rerun", "0"])
    assert wrong.exit_code == 1
    assert "refused: cases missing" in wrong.output


def test_without_runs_no_backend_is_needed(report, edited, tmp_path):
    file = tmp_path / "report.json"
    file.write_text(json.dumps(edited(lambda r: r["run"].update(backend="nobody-has-this"))))
    assert CliRunner().invoke(command, [str(file), "--rerun", "0"]).exit_code == 0
    assert CliRunner().invoke(command, [str(file), "--rerun", "1"]).exit_code != 0


def test_the_cases_of_the_report_are_those_that_ids_name(report):
    for entry in report["cases"][:5]:
        assert parse_case(entry["id"], CHECKS).id == entry["id"]


def test_a_case_that_says_what_it_could_not_observe_is_no_contradiction(make_report):
    def observe_less(results):
        results[0] = replace(results[0], notes=("the session does not count device memory",))

    noted = make_report("silu_mul", observe_less)
    assert noted["cases"][0]["notes"]
    assert wholeness(noted) == []
