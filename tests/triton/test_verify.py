"""`opsocket verify` from end to end, on one operator and one architecture of each vendor: what its report says, and to
whom."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from xml.etree import ElementTree

import jsonschema
import pytest
from click.testing import CliRunner

from opsocket_conformance.cli.verify import command as check
from opsocket_conformance.ladder.command import command
from opsocket_conformance.report import data
from opsocket_conformance.report.badge import message
from opsocket_conformance.report.reading import load, schema
from opsocket_conformance.verify import wholeness

CASE = "add[t=7,dtype=bf16,width=536]#0"


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """The reports of one run on an interpreted MI300, compiled for it and for an RDNA 3."""
    folder = tmp_path_factory.mktemp("verify")
    files = {kind: folder / f"report.{kind}" for kind in ("json", "junit", "markdown", "html", "badge")}
    options = [word for kind, file in files.items() for word in (f"--{kind}", str(file))]
    arguments = ["--backend", "rocm", "--arch", "gfx942,gfx1100", "--case", CASE, *options]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "controls refused" in ran.output
    assert "Nothing of this has run on AMD hardware" in ran.output
    return files


@pytest.fixture
def report(files):
    return load(files["json"])


def test_the_report_says_interpreted_and_compiled_and_is_whole(report) -> None:
    jsonschema.validate(report, schema())
    assert report["evidence"] == {"numerics": "interpreted", "artifact": "compiled"}
    assert report["device"]["arch"] == report["ladder"]["stand_in"] == "gfx942"
    assert wholeness(report) == []
    assert report["ladder"]["operators"] == [
        {"operator": "add", "provider": "triton", "launches": 1, "artifact": "compiled", "why": ""}
    ]
    assert [(made["launch"], made["arch"]) for made in report["ladder"]["artifacts"]] == [(0, "gfx942"), (0, "gfx1100")]


def test_numbers_are_shared_where_the_launches_are_the_same(report) -> None:
    (other,) = report["ladder"]["numerics"]
    assert (other["arch"], other["same"], other["wrong"]) == ("gfx1100", 1, [])
    assert not any(other["counts"].values())
    launch = {"owners": ["add/triton"], "architectures": ["gfx942", "gfx1100"], "kind": "compiled"}
    assert report["ladder"]["launches"] == [launch]


@pytest.mark.slow
def test_numbers_are_shared_with_any_architecture_before(tmp_path) -> None:
    """Attention launches otherwise on RDNA than on CDNA, and alike on RDNA 3 and 4: one stand-in computes for both."""
    case, file = "attention[hq=9,hkv=3,d=64,bs=0,q=f16,batch=short,x=normal]#0", tmp_path / "report.json"
    arguments = ["--backend", "rocm", "--arch", "gfx942,gfx1100,gfx1201", "--case", case, "--json", str(file)]
    ran = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    report = load(file)
    assert wholeness(report) == []
    found = [(x["arch"], x["same"], x["alike"], x["counts"]["PASS"]) for x in report["ladder"]["numerics"]]
    assert found == [("gfx1100", 0, 0, 1), ("gfx1201", 0, 1, 1)]
    assert {tuple(launch["architectures"]) for launch in report["ladder"]["launches"]} == {
        ("gfx942",), ("gfx1100", "gfx1201")
    }  # fmt: skip


def test_every_control_was_refused_for_its_own_fault(report) -> None:
    controls = report["ladder"]["controls"]
    assert all(control["refused"] for control in controls)
    said = {(c["name"], c["rung"], c["arch"]): c["said"] for c in controls}
    assert "OutOfBounds" in said["out-of-bounds load", "numerics", "gfx942"]
    assert "were not rounded so" in said["bf16 by truncation", "numerics", "gfx942"]
    assert "4 x 16 x 16" in said["a product that no unit takes", "numerics", "gfx942"]
    assert "tf32" in said["an f32 product in tf32", "numerics", "gfx942"]
    for arch in ("gfx942", "gfx1100"):
        assert said["oversized tile", "artifact", arch].startswith("shared memory")
        assert said["missing matrix instruction", "artifact", arch].startswith("matrix units")
        assert said["spilled registers", "artifact", arch].startswith("spills")


def test_the_other_forms_say_the_same(files) -> None:
    root = ElementTree.parse(files["junit"]).getroot()
    names = [suite.get("name") for suite in root.findall("testsuite")]
    assert names == ["add", "artifacts", "controls"]
    page = files["markdown"].read_text()
    assert "numerics: interpreted" in page
    assert "artifact: compiled" in page
    assert "model.add:add_rows" in page
    html = files["html"].read_text()
    assert "Without the chip" in html
    assert "interpreted + compiled for 2 chips" in files["badge"].read_text()


def test_the_report_repeats(files) -> None:
    ran = CliRunner().invoke(check, [str(files["json"]), "--rerun", "1"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    assert "1 of 1 came out the same" in ran.output


def promote(report):
    report["evidence"].update(numerics="device", artifact="device")


def promote_whole_device(report):
    report["device"]["numerics"] = "device"
    promote(report)


def forget_problem(report):
    report["ladder"]["artifacts"].pop()


def pass_control(report):
    report["ladder"]["controls"][0]["refused"] = False


BLURS = [
    ("evidence", promote),
    ("not by a stand-in", promote_whole_device),
    ("evidence", lambda r: r["evidence"].update(artifact="device")),
    ("does not follow from the artifacts", forget_problem),
    ("evidence", lambda r: r.pop("ladder")),
    ("verdict", pass_control),
    ("no control", lambda r: r["ladder"].update(controls=[])),
    ("verdict", lambda r: r["ladder"]["artifacts"][0].update(problems=["spills: 3"])),
    ("cases are missing for gfx1100", lambda r: r["ladder"]["numerics"][0].update(same=0)),
    ("numbers are wanted for gfx1100", lambda r: r["ladder"].update(numerics=[])),
    ("or of nothing that was asked for", lambda r: r["ladder"].update(architectures=["gfx942"])),
]


@pytest.mark.parametrize(("reason", "change"), BLURS, ids=[f"{i}-{reason}" for i, (reason, _) in enumerate(BLURS)])
def test_evidence_can_not_be_blurred(report, reason, change) -> None:
    other = copy.deepcopy(report)
    change(other)
    found = wholeness(data.seal(other))
    assert any(reason in problem for problem in found), found


def test_a_badge_promises_no_more_than_was_seen(report) -> None:
    profiles = [{**report["profiles"][0], "name": "decoder", "verdict": "held"}]
    held = {**report, "profiles": profiles}
    assert message(held) == ("decoder, interpreted + compiled for 2 chips, smoke tier", "partial")
    none = {**held, "evidence": {"numerics": "interpreted", "artifact": "none"}}
    assert message(none) == ("decoder, interpreted only, smoke tier", "partial")


def test_what_there_is_no_ladder_for_is_refused() -> None:
    assert CliRunner().invoke(command, ["--backend", "cpu"]).exit_code == 3
    unknown = CliRunner().invoke(command, ["--backend", "cuda", "--arch", "sm_17"])
    assert "sm_17" in str(unknown.exception)


def test_reports_are_json(files) -> None:
    assert json.loads(files["json"].read_text())["schema"] == 2
