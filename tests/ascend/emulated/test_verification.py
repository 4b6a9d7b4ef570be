"""`opsocket verify --backend ascend`: what its rungs refuse, and what its report says."""

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from opsocket_ascend.verification.ladder import AscendLadder
from opsocket_conformance.ladder.command import command
from opsocket_conformance.report.reading import load
from opsocket_conformance.verify import wholeness

CASES = (
    "quantize_activation[m=5,k=256,dtype=f16]#0",
    "matmul[m=3,n=136,k=256,w=i8_channel_a8,dtype=bf16]#0",
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Reports of one run: two cases, and every control."""
    folder = tmp_path_factory.mktemp("verify")
    files = {kind: folder / f"report.{kind}" for kind in ("json", "html", "markdown", "junit", "badge")}
    options = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    cases = [word for case in CASES for word in ("--case", case)]
    arguments = ["--backend", "ascend", "--arch", "Ascend910B3", *cases, *options]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return files


@pytest.fixture
def report(files):
    return load(files["json"])


def test_the_report_says_emulated_and_schema_and_is_whole(report):
    assert wholeness(report) == []
    assert report["evidence"] == {"numerics": "emulated", "artifact": "schema"}
    assert {entry["provider"] for entry in report["ladder"]["operators"]} == {"torch_npu"}
    assert not any(entry["problems"] for entry in report["ladder"]["artifacts"])
    facts = {made["kernel"]: made["facts"] for made in report["ladder"]["artifacts"]}
    assert facts["npu_quant_matmul"] == {
        "schema": "accepted",
        "Meta function": "agrees",
        "C++": "accepted",
        "aclnn": ["aclnnQuantMatmulWeightNz"],
        "golden trace": "the same",
    }


def test_every_form_says_that_it_never_ran_on_an_npu(files):
    for kind in ("html", "markdown"):
        assert "Never run on an NPU" in files[kind].read_text()
    assert "emulated" in files["badge"].read_text()


def test_every_control_was_refused_for_its_own_fault(report):
    said = {control["name"]: control["said"] for control in report["ladder"]["controls"] if control["refused"]}
    assert set(said) == {control["name"] for control in report["ladder"]["controls"]}
    assert "SIGSEGV" in said["host read of device memory"]
    assert "off the session's device" in said["work on the host"]
    assert said["an argument that the schema has not"].startswith("schema: ")
    assert "k dim of x1 and x2" in said["K that differs, for the int8 product"]


def test_ours_refuse_what_torch_npu_takes(report):
    """Where a release of torch_npu refuses one of these itself, this fails, and our documentation has to change."""
    said = {c["name"]: c["said"] for c in report["ladder"]["controls"] if c["said"].startswith("ContractError")}
    theirs = {name for name, text in said.items() if not text.endswith("torch_npu takes it")}
    assert len(said) == 12
    assert theirs == {"K of the int8 product", "K of the weight-only product"}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda call: call.update(aclnn=["aclnnDynamicQuant()"]), "aclnn: "),
        (lambda call: call["results"][1].update(shape=[5, 1]), "Meta function: "),
        (lambda call: call["kwargs"].update(no_such=1), "schema: "),
        (lambda call: call.update(operator="npu::no_such.default"), "schema: "),
    ],
)
def test_a_changed_record_is_refused(change, problem):
    from opsocket_ascend.verification.controls import wrong_calls

    call = json.loads(wrong_calls()["another call of CANN"].dumps()) | {"aclnn": None}
    change(call)
    (made,) = AscendLadder().make([(json.dumps(call), "Ascend910B3")], 1, lambda artifact: None)
    assert any(text.startswith(problem) for text in made.problems), made


def test_a_record_that_kills_its_checker_is_that_records_problem():
    first, last = AscendLadder().make([("no json", "Ascend910B3"), *_right()], 1, lambda artifact: None)
    assert first.problems[0].startswith("checker: its process ended with code 1")
    assert not last.problems


def _right():
    from opsocket_ascend.verification.controls import wrong_calls

    call = json.loads(wrong_calls()["another call of CANN"].dumps()) | {"aclnn": None}
    return [(json.dumps(call), "Ascend910B3")]


def test_a_golden_trace_that_differs_is_a_problem():
    """In a process of its own, as the checker's calls stay unanswered."""
    program = """
import json
from opsocket_ascend.verification import check, controls
call = controls.wrong_calls()["another call of CANN"]
call = type(call)(call.operator, call.args, call.kwargs, call.results)
check.golden = lambda family: {call.asked: ["aclnnSomethingElse()"]}
print(json.dumps(check.Checker().check(call)[1]))
"""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True)
    (problem,) = json.loads(done.stdout.splitlines()[-1])
    assert problem.startswith("golden trace: aclnnDynamicQuant")
