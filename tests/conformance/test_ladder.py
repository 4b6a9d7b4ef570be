"""What a ladder's section says follows from what was seen: by operator, by architecture, and never more than the least
of it."""

from __future__ import annotations

from dataclasses import replace

import jsonschema
import pytest

from opsocket.operators import Artifact, ContractError, DeviceInfo
from opsocket.runtime import RuntimeConfig
from opsocket_conformance.evidence import Evidence, evidence_of
from opsocket_conformance.ladder import climb, section
from opsocket_conformance.ladder.climb import Ground, _is_same, changed, ground, sample, stand_in
from opsocket_conformance.ladder.controls import Control
from opsocket_conformance.ladder.section import Climbed, Elsewhere, launches_of
from opsocket_conformance.planned import plan_run, why_red
from opsocket_conformance.profiles import PROFILES, hold
from opsocket_conformance.report import data
from opsocket_conformance.report.html import html
from opsocket_conformance.report.junit import junit
from opsocket_conformance.report.ladder import words
from opsocket_conformance.report.markdown import markdown
from opsocket_conformance.report.reading import schema
from opsocket_conformance.report.terminal import lines
from opsocket_conformance.runner import run
from opsocket_conformance.verdicts import Result, Verdict
from opsocket_conformance.verify import wholeness

INTERPRETED = DeviceInfo("chip", 0, "a chip", "old", 0, numerics="interpreted")


def result(operator="add", verdict=Verdict.PASS, launched=("k1",), provider="ours", tier="native", case="", trace="t"):
    owned = {f"{operator}/{provider}": tuple(launched)} if launched else {}
    return Result(case or f"{operator}[]#0", operator, verdict, provider, tier, launched=owned, trace=trace)


def compiled(record) -> str:
    return "compiled"


def climbed(results, wrong=(), others=(), arches=("old", "new"), controls=True, kind_of=compiled, lacking=()) -> dict:
    """The section of a run in which all launches were made for all of their architectures, but for what is `lacking`,
    and are right, but for what is `wrong`."""
    launches = launches_of(results, others, arches, kind_of)
    made = [
        (i, Artifact(x.record, x.record, arch, {"registers": 8}, ("spills: 1",) if (x.record, arch) in wrong else ()))
        for i, x in enumerate(launches)
        for arch in x.arches
        if x.record not in lacking
    ]
    asked = [Control("c", "", "artifact", arch, controls, "") for arch in arches]
    asked.append(Control("c", "", "numerics", "old", controls, ""))
    return section.section(
        Climbed("compiled", "old", tuple(others), arches, tuple(launches), tuple(made), tuple(asked), (), ("no chip",)),
        results,
    )


def everywhere(results) -> tuple[Elsewhere, ...]:
    return (Elsewhere("new", tuple(r.case for r in results), ()),)


def proven(content) -> dict[str, str]:
    return {entry["operator"]: entry["artifact"] for entry in content["operators"]}


def test_an_operator_is_compiled_where_every_launch_of_its_own_is_for_every_architecture() -> None:
    results = [result("add"), result("rope", launched=("k2", "k3"))]
    content = climbed(results, others=everywhere(results))
    assert proven(content) == {"add": "compiled", "rope": "compiled"}
    assert section.artifact_of(content) == "compiled"
    assert evidence_of(INTERPRETED, content) == Evidence("interpreted", "compiled")
    assert section.failure(content) == ""

    content = climbed(results, wrong={("k3", "new")}, others=everywhere(results))
    assert proven(content) == {"add": "compiled", "rope": "none"}
    assert evidence_of(INTERPRETED, content) == Evidence("interpreted", "none")
    assert section.failure(content) == "1 of 6 artifacts refused, such as k3 for new"


def test_where_artifacts_are_of_two_kinds_an_operator_has_the_lower_of_its_own() -> None:
    def kind_of(record) -> str:
        return "schema" if record == "call" else "compiled"

    results = [
        result("add"),
        result("rope", launched=("call",)),
        result("matmul", launched=("k2", "call")),
    ]
    content = climbed(results, others=everywhere(results), kind_of=kind_of)
    assert proven(content) == {"add": "compiled", "rope": "schema", "matmul": "schema"}
    assert section.artifact_of(content) == "schema"
    assert words(content).startswith("2 launches of 2 kernels compiled, 1 calls of 1 vendor's operators held against")

    content = climbed(results, others=everywhere(results), kind_of=kind_of, lacking=("k2", "call"))
    assert proven(content) == {"add": "compiled", "rope": "none", "matmul": "none"}
    why = {entry["operator"]: entry["why"] for entry in content["operators"]}
    assert why["matmul"] == "of 2 launches 1 not compiled and 1 not held against the schema"


def test_what_another_provider_launches_on_another_architecture_counts_too() -> None:
    def kind_of(record) -> str:
        return "schema" if record == "call" else "compiled"

    there = result("rope", launched=("call",), provider="theirs")
    others = (Elsewhere("new", (), (there,)),)
    assert proven(climbed([result("rope")], others=others, kind_of=kind_of)) == {"rope": "schema"}
    assert proven(climbed([result("rope")], wrong={("call", "new")}, others=others)) == {"rope": "none"}
    assert proven(climbed([result("rope", launched=())], others=others)) == {"rope": "none"}


def test_an_operator_without_a_kernel_of_its_own_proves_no_artifact() -> None:
    other = Result("m[]#0", "matmul", Verdict.PASS, "ours", "native", launched={"add/ours": ("k1",)})
    content = climbed([result("add"), result("argmax", launched=(), provider="composed", tier="composed"), other])
    assert proven(content) == {"add": "compiled", "argmax": "none", "matmul": "none"}
    why = {entry["operator"]: entry["why"] for entry in content["operators"]}
    assert why["argmax"] == "composed of the framework's operators"
    assert section.artifact_of(content) == "none"


def test_what_no_plan_runs_counts_by_all_that_its_cases_launched() -> None:
    captured = Result("capture[]#0", "capture", Verdict.PASS, "ours", "native", launched={"add/ours": ("k1",)})
    assert proven(climbed([captured])) == {"capture": "compiled"}


def test_a_real_device_proves_itself_and_nothing_else_becomes_one() -> None:
    real = replace(INTERPRETED, numerics="device")
    content = climbed([result()], wrong={("k1", "new")}, others=everywhere([result()]))
    assert evidence_of(real, content) == Evidence("device", "device")
    assert evidence_of(INTERPRETED) == Evidence("interpreted", "none")
    assert evidence_of(replace(INTERPRETED, numerics="emulated")) == Evidence("emulated", "schema")


def test_a_device_alone_needs_no_artifacts() -> None:
    content = climbed([result()], arches=())
    assert section.failure(content) == ""
    assert words(content).startswith("What ran on the device proves itself")
    assert evidence_of(replace(INTERPRETED, numerics="device"), content) == Evidence("device", "device")


def test_nothing_that_passed_proves_nothing() -> None:
    assert section.artifact_of(climbed([])) == "none"
    assert section.artifact_of(climbed([result(verdict=Verdict.FAIL)])) == "none"


def test_launches_are_made_for_the_architectures_that_launch_them() -> None:
    results = [result("add", case="a"), result("rope", launched=("k2",), case="b")]
    ran_there = result("rope", launched=("k2 wide",), case="b")
    others = (Elsewhere("new", ("a",), (ran_there,)),)
    found = {x.record: x.arches for x in launches_of(results, others, ("old", "new"), compiled)}
    assert found == {"k1": ("old", "new"), "k2": ("old",), "k2 wide": ("new",)}
    content = climbed(results, others=others)
    assert proven(content) == {"add": "compiled", "rope": "compiled"}
    assert [len(x["architectures"]) for x in content["launches"]] == [2, 1, 1]


def test_a_case_that_is_wrong_for_another_architecture_is_red() -> None:
    results = [result(case="a"), result(case="b")]
    wrong = replace(results[1], verdict=Verdict.FAIL, messages=("y[0]: nan",))
    content = climbed(results, others=(Elsewhere("new", ("a",), (wrong,)),))
    assert section.failure(content) == "1 cases are wrong for new, such as b"
    assert content["numerics"][0]["wrong"] == [{"case": "b", "verdict": "FAIL", "said": "y[0]: nan"}]


def test_a_control_that_passes_is_red_before_all_else() -> None:
    content = climbed([result()], wrong={("k1", "old")}, controls=False)
    assert section.failure(content).startswith("3 controls passed that had to be refused")


def test_a_rehearsal_says_what_is_launched_and_not_whether_it_is_right() -> None:
    assert _is_same(result(trace="x"), result(trace="x", verdict=Verdict.FAIL))
    assert not _is_same(result(trace="x"), result(trace="y"))
    assert not _is_same(result(trace="x"), result(trace="x", verdict=Verdict.UNSUPPORTED))


def test_what_a_rehearsal_was_denied_is_not_asked_again(monkeypatch) -> None:
    """Of three cases one is the same there, one is denied there, and one launches something else."""
    cases = plan_run("smoke", (), (), "add[").cases[:3]
    same, denied, other = (case.id for case in cases)
    ran = []

    def run_isolated(asked, *, record, **how):
        told = {same: result(trace="x"), denied: result(verdict=Verdict.UNSUPPORTED), other: result(trace="y")}
        if record == "run":
            ran.extend(case.id for case in asked)
        return [replace(told[case.id], case=case.id) for case in asked]

    monkeypatch.setattr(climb, "run_isolated", run_isolated)
    there = Ground(_Ladder(), stand_in(_Backend(), _Ladder(), "old")[0], {}, ("old", "new"))
    results = [result(case=case.id, trace="x") for case in cases]
    (found,) = climb.elsewhere(_Backend(), there, RuntimeConfig(), cases, results, jobs=1, seed=0, limit_s=1.0)
    assert ran == [other]
    assert found.same == (same,)
    assert [(each.case, each.verdict.name) for each in found.results] == [(denied, "UNSUPPORTED"), (other, "PASS")]


# ---- where it is climbed


class _Ladder:
    numerics, artifact, arches, usual = "interpreted", "compiled", ("old", "new"), ()

    def environment(self, arch):
        return {"STAND_IN": arch}

    def kernel_of(self, record):
        return record.partition(" ")[0]


class _Backend:
    def __init__(self, *real: str) -> None:
        self._real = real

    def devices(self):
        import os

        found = [DeviceInfo("chip", i, arch, arch, 0) for i, arch in enumerate(self._real)]
        if arch := os.environ.get("STAND_IN"):
            found.append(DeviceInfo("chip", len(found), arch, arch, 0, numerics="interpreted"))
        return found


def test_a_device_that_is_here_is_taken_where_its_architecture_is_asked_for() -> None:
    def place(backend, *asked) -> Ground:
        return ground(backend, _Ladder(), asked)

    absent = place(_Backend())
    assert (absent.device.arch, absent.device.numerics, absent.arches) == ("old", "interpreted", ("old", "new"))
    assert absent.environment == {"STAND_IN": "old"}
    here = place(_Backend("new"), "old", "new")
    assert (here.device.arch, here.device.numerics, here.environment) == ("new", "device", {})
    assert here.arches == ("old", "new")
    assert place(_Backend("new")).arches == ("new",)
    assert place(_Backend("newest")).arches == (), "a device that nothing is compiled for ahead of time"
    other = place(_Backend("new"), "old")
    assert (str(other.device), other.device.numerics) == ("chip:1", "interpreted")
    with pytest.raises(ContractError, match="one of old, new"):
        place(_Backend(), "newest")


def test_the_usual_architectures_are_those_that_nobody_asked_for() -> None:
    class Many(_Ladder):
        usual = ("new",)

    assert ground(_Backend(), Many(), ()).arches == ("new",)
    assert ground(_Backend(), Many(), ("old",)).arches == ("old",)


def test_a_device_itself_takes_the_calls_that_a_schema_is_about() -> None:
    class Schema(_Ladder):
        artifact = "schema"

    assert ground(_Backend("new"), Schema(), ()).arches == ()
    assert ground(_Backend("new"), Schema(), ("old", "new")).arches == ("old",)


def test_the_environment_is_as_it_was_afterwards(monkeypatch) -> None:
    import os

    monkeypatch.setenv("STAND_IN", "before")
    monkeypatch.delenv("ELSE", raising=False)
    with changed({"STAND_IN": "old", "ELSE": "1"}):
        assert os.environ["STAND_IN"] == "old"
    assert os.environ["STAND_IN"] == "before"
    assert "ELSE" not in os.environ


def test_a_sample_has_every_kernel() -> None:
    launches = launches_of([result(launched=[f"{k} {n}" for k in "ab" for n in range(10)])], (), ("old",), compiled)
    assert sample(_Ladder(), launches, None) == list(range(20))
    chosen = sample(_Ladder(), launches, 2)
    assert [launches[i].record[0] for i in chosen] == ["a", "a", "b", "b"]


# ---- the report, from a real run of cases, as though an interpreter had given them


@pytest.fixture(scope="module")
def make(session):
    def make(change=lambda results: None, **options):
        planned = plan_run("smoke", (), text="add[")
        results = run(planned.cases, session)
        results = [replace(r, launched={f"add/{r.provider}": (r.case,)}) for r in results]
        change(results)
        held = [hold(profile, planned.pool, {r.case: r for r in results}) for profile in PROFILES]
        content = climbed(results, others=everywhere(results), **options)
        reason = why_red(results, held, asked=False, whole=False) or section.failure(content)
        asked = data.Run("cpu:0", {}, "smoke", 0, (), "", "add[")
        info = session.backend.info
        return data.build(asked, info, INTERPRETED, planned.cases, results, held, reason, 1.0, ladder=content)

    return make


def test_reports_of_all_kinds_hold_it(make) -> None:
    report = make()
    jsonschema.validate(report, schema())
    assert wholeness(report) == []
    assert report["verdict"]["green"]
    assert report["evidence"] == {"numerics": "interpreted", "artifact": "compiled"}
    assert "no chip" in html(report)
    assert "no chip" in markdown(report)
    assert 'name="artifacts"' in junit(report)
    assert any("controls refused" in line for line in lines(report))


def test_red_numbers_make_a_red_report_however_well_it_compiles(make) -> None:
    def fail(results):
        results[0] = replace(results[0], verdict=Verdict.FAIL, messages=("y[0]: nan",))

    report = make(fail)
    assert report["verdict"] == {"green": False, "reason": "1 FAIL"}
    assert wholeness(report) == []
    assert any(line.startswith("    again: opsocket verify --backend cpu --arch old,new") for line in lines(report))


def test_a_refused_artifact_makes_a_red_report(make) -> None:
    first = plan_run("smoke", (), text="add[").cases[0].id
    report = make(wrong={(first, "new")})
    assert report["verdict"]["reason"].startswith("1 of 6 artifacts refused")
    assert report["evidence"]["artifact"] == "none"
    assert wholeness(report) == []
    assert "spills: 1" in html(report)
    assert junit(report).count("<failure") == 1
