"""What is told: JSON by its schema, well-formed JUnit, Markdown, a comparison, exit codes."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from xml.etree import ElementTree

import jsonschema
import pytest
from click.testing import CliRunner

from opsocket.operators import DeviceInfo, FormatError
from opsocket_conformance.case import Case
from opsocket_conformance.cases import cases_of
from opsocket_conformance.cli import command
from opsocket_conformance.compare import compare, is_regression
from opsocket_conformance.evidence import Evidence, evidence_of, suite_digest
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.profiles import PROFILES, find_profiles, hold
from opsocket_conformance.report import data, markdown, terminal
from opsocket_conformance.report.badge import badge, message
from opsocket_conformance.report.junit import junit
from opsocket_conformance.report.reading import load, schema
from opsocket_conformance.runner import run
from opsocket_conformance.verdicts import Result, Verdict, count


def invoke(*args: str):
    return CliRunner().invoke(command, [*args])


@pytest.fixture(scope="module")
def cases():
    return [case for case in cases_of("smoke") if case.check.operator in ("attention", "add", "matmul")][::4]


@pytest.fixture(scope="module")
def report(session, cases):
    """A report with every verdict in it."""
    results = run(cases, session)
    others = list(Verdict)[1:]
    results[1] = replace(results[1], ratio=float("inf"), messages=("out[0]: 1 < 2 & 3\x00",))
    for index, verdict in enumerate(others, 1):
        results[index] = replace(results[index], verdict=verdict)
    by_id = {r.case: r for r in results}
    held = [hold(profile, cases, by_id) for profile in PROFILES]
    asked = data.Run("cpu", {"attention": "torch"}, "smoke", 3, (), "", "")
    return data.build(asked, session.backend.info, session.device, cases, results, held, "1 CRASH", 1.5)


def test_the_json_report_is_as_its_schema_says(report):
    jsonschema.Draft202012Validator.check_schema(schema())
    jsonschema.validate(json.loads(json.dumps(report, allow_nan=False)), schema())
    assert report["evidence"] == {"numerics": "device", "artifact": "device"}
    assert report["suite"]["digest"] == suite_digest()
    assert len(report["cases"]) == sum(report["counts"].values())


def test_a_run_started_before_it_took_its_time(session):
    asked, before = data.Run("cpu", {}, "smoke", 0, (), "", ""), datetime.now(UTC)
    report = data.build(asked, session.backend.info, session.device, [], [], [], "nothing ran", 3600.0)
    assert abs(before - datetime.fromisoformat(report["run"]["started"]) - timedelta(hours=1)) < timedelta(minutes=1)


def test_junit_is_well_formed_and_counts_the_same(report):
    root = ElementTree.fromstring(junit(report).encode())
    assert len(root.findall(".//testcase")) == len(report["cases"])
    counts = report["counts"]
    assert len(root.findall(".//failure")) == counts["FAIL"] == 1
    assert len(root.findall(".//error")) == counts["CRASH"] + counts["NOT_RUN"]
    assert len(root.findall(".//skipped")) == counts["UNSUPPORTED"] + counts["EXCLUDED"]


def test_a_failure_is_told_with_the_command_that_repeats_it(report):
    text = "\n".join(terminal.lines(report))
    failed = next(case["id"] for case in report["cases"] if case["verdict"] == "FAIL")
    line = next(line for line in text.splitlines() if "again:" in line and shlex.quote(failed) in line)
    words = shlex.split(line.partition("again:")[2])
    assert words == [
        "opsocket",
        "conformance",
        "--backend",
        "cpu",
        "--pin",
        "attention=torch",
        "--case",
        failed,
        "--seed",
        "3",
    ]
    assert text.endswith("red: 1 CRASH")


def test_markdown_holds_the_verdict_and_every_operator(report):
    page = markdown.markdown(report)
    assert "**red: 1 CRASH**" in page
    assert all(f"| {row['operator']} |" in page for row in report["operators"])


def test_an_emulated_device_proves_less():
    device = DeviceInfo("x", 0, "x", "x", 0)
    assert evidence_of(device) == Evidence("device", "device")
    assert evidence_of(replace(device, numerics="emulated")) == Evidence("emulated", "schema")
    assert evidence_of(replace(device, numerics="interpreted")) == Evidence("interpreted", "none")


def test_a_badge_says_no_more_than_was_proven(report):
    assert message(report) == ("red: 1 CRASH", "red")
    green = report | {"verdict": {"green": True, "reason": ""}}
    none = [profile | {"verdict": "incomplete"} for profile in report["profiles"]]
    assert message(green | {"profiles": none})[1] == "partial"
    profiles = [profile | {"verdict": "held"} for profile in report["profiles"]]
    held = green | {"profiles": profiles, "run": report["run"] | {"tier": "default"}}
    assert message(held) == (f"decoder + {len(PROFILES) - 1} profiles, device", "green")
    emulated = held | {"evidence": {"numerics": "emulated", "artifact": "none"}}
    assert message(emulated) == (f"decoder + {len(PROFILES) - 1} profiles, emulated only", "partial")
    excluded = [profile | {"verdict": "held with exclusions"} for profile in report["profiles"]]
    assert message(held | {"profiles": excluded})[1] == "partial"
    root = ElementTree.fromstring(badge(held))
    assert root.attrib["aria-label"] == f"conformance: {message(held)[0]}"


# ---- profiles


def _held(name, verdict_of, cases):
    results = {c.id: Result(c.id, c.check.operator, verdict_of(c)) for c in cases}
    return hold(find_profiles([name])[0], cases_of("smoke"), results)


def test_one_type_is_enough_for_decoder():
    held = _held("decoder", lambda c: Verdict.UNSUPPORTED if "f16" in _dtypes(c) else Verdict.PASS, cases_of("smoke"))
    assert held.verdict == "held"
    assert all(by.startswith("bf16") for by in held.by)


def test_unsupported_is_never_green():
    held = _held(
        "decoder", lambda c: Verdict.UNSUPPORTED if c.check.operator == "rope" else Verdict.PASS, cases_of("smoke")
    )
    assert held.verdict == "not held"
    assert all(id.startswith("rope[") for id in held.missing)


@pytest.mark.parametrize("verdict", [Verdict.FAIL, Verdict.CRASH, Verdict.EXCLUDED, Verdict.NOT_RUN])
def test_nothing_but_a_pass_holds_a_profile(verdict):
    hit = Attention(batch="mixed", lse=True)
    held = _held("cascade", lambda c: verdict if c.check == hit else Verdict.PASS, cases_of("smoke"))
    assert held.verdict == "held"
    assert "bf16" not in held.by


def test_an_exclusion_is_told_in_the_verdict():
    held = _held(
        "decoder-f32",
        lambda c: Verdict.EXCLUDED if c.check.operator == "rope" else Verdict.PASS,
        cases_of("smoke"),
    )
    assert held.verdict == "held with exclusions"


def test_a_part_of_the_cases_is_incomplete():
    assert _held("decoder", lambda c: Verdict.PASS, cases_of("smoke")[::2]).verdict == "incomplete"
    assert _held("decoder", lambda c: Verdict.PASS, []).verdict == "incomplete"


def _dtypes(case: Case) -> set[str]:
    return {f.partition(":")[2] for f in case.check.features() if f.startswith("dtype:")}


# ---- comparison


def test_a_comparison_finds_what_broke_and_what_grew(report):
    newer = json.loads(json.dumps(report))
    passed = [case for case in newer["cases"] if case["verdict"] == "PASS" and case["ratio"]]
    passed[0]["verdict"] = "FAIL"
    passed[1]["ratio"] = 0.9
    passed[2]["verdict"] = "UNSUPPORTED"
    newer["cases"].remove(passed[3])
    changes = {change.name: change.kind for change in compare(report, newer)}
    assert changes == {
        passed[0]["id"]: "broken",
        passed[1]["id"]: "grew",
        passed[2]["id"]: "lost",
        passed[3]["id"]: "lost",
    }
    assert compare(report, report) == []


def test_a_comparison_sees_profiles_filters_coverage_and_speed(report):
    newer = json.loads(json.dumps(report))
    newer["profiles"][0] |= {"verdict": "not held", "by": []}
    older = json.loads(json.dumps(report))
    older["profiles"][0] |= {"verdict": "held", "by": ["bf16 f16"]}
    knob = next(iter(newer["filters"]))
    newer["filters"][knob]["credited"] = 0
    newer["coverage"]["pairs"] -= 1
    row = {"case": "x", "operator": "add", "seconds": 1e-3, "bytes": 8, "gb_s": 8e-6, "fraction_of_limit": None}
    older["speed"], newer["speed"] = [row], [row | {"seconds": 2e-3}]
    changes = compare(older, newer)
    found = {(change.subject, change.kind) for change in changes}
    assert found == {("profile", "lost"), ("filter", "lost"), ("coverage", "lost"), ("speed", "slower")}
    slower = changes[-1]
    assert (is_regression(slower), is_regression(slower, 3), is_regression(slower, 1.5)) == (False, False, True)


def test_comparing_on_the_command_line(report, tmp_path):
    old, new = tmp_path / "old.json", tmp_path / "new.json"
    old.write_text(json.dumps(report))
    newer = json.loads(json.dumps(report))
    next(case for case in newer["cases"] if case["verdict"] == "PASS")["verdict"] = "FAIL"
    new.write_text(json.dumps(newer))
    assert invoke("compare", str(old), str(old)).exit_code == 0
    changed = invoke("compare", str(old), str(new))
    assert changed.exit_code == 1
    assert changed.output.startswith("broken")
    told = json.loads(invoke("compare", "--json", str(old), str(new)).stdout)
    assert (told["regression"], told["same_suite"], len(told["changes"])) == (True, True, 1)
    new.write_text("{}")
    assert isinstance(invoke("compare", str(old), str(new)).exception, FormatError)


# ---- the command


def test_a_green_run_ends_with_0_and_writes_its_reports(tmp_path):
    files = [str(tmp_path / name) for name in ("a.json", "a.xml", "a.md")]
    reports = ("--json", files[0], "--junit", files[1], "--markdown", files[2])
    ran = invoke("--backend", "cpu", "--tier", "smoke", "--filter", "add[", *reports)
    assert ran.exit_code == 0, ran.output
    assert ran.output.endswith("green\n")
    jsonschema.validate(load(files[0]), schema())
    assert ElementTree.parse(files[1]).getroot().tag == "testsuites"


def test_json_on_stdout_is_only_json():
    ran = invoke("--backend", "cpu", "--case", "add[]#0", "--json", "-")
    assert json.loads(ran.stdout)["counts"]["PASS"] == 1


def test_a_run_of_nothing_ends_with_1():
    ran = invoke("--backend", "cpu", "--filter", "no such case")
    assert ran.exit_code == 1
    assert "no case was planned" in ran.output


def test_a_case_that_is_not_supported_ends_with_1():
    ran = invoke("--backend", "cpu", "--case", "attention[exact=0]#0")
    assert ran.exit_code == 1
    assert "nothing passed" in ran.output


def test_the_cases_of_a_profile_are_listed_without_a_backend():
    listed = invoke("--profile", "kv-int8", "--tier", "smoke", "--list", "--shard", "1/2").output.split()
    assert listed
    assert set(listed) < {case.id for case in cases_of("smoke")}


@pytest.mark.parametrize("arguments", [["--shard", "3/2"], ["--shard", "x"], ["--profile", "nope"], ["--tier", "huge"]])
def test_wrong_usage_is_refused(arguments):
    assert invoke("--list", *arguments).exit_code != 0


def test_an_unknown_backend_does_not_end_with_0():
    """Through the real command: nothing may turn a missing backend into "passed"."""
    run = [sys.executable, "-c", "from opsocket.cli.main import main; main()", "conformance", "--backend", "nope"]
    ended = subprocess.run(run, capture_output=True, text=True, check=False)
    assert ended.returncode not in (0, 1)
    assert "nope" in ended.stderr
    assert not ended.stdout


def test_the_command_is_light_to_import():
    code = "import sys, opsocket_conformance.cli; print({'numpy', 'torch', 'rich'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_counts_name_every_verdict():
    assert set(count([])) == set(Verdict)
