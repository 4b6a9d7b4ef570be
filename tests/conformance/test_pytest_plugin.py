"""The cases inside other people's pytest: by an option without any file, and by a class to inherit.

Real runs of pytest in processes of their own, over the plugin template's backend, in a folder that knows nothing of us.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from opsocket_conformance.cases import cases_of

REGISTERED = any(point.name == "opsocket" for point in entry_points(group="pytest11"))

WRONG_ADD = """
from opsocket_conformance.testing import ConformanceSuite
from opsocket.operators import AddPlan, AddSpec, Pick, SessionOptions
from opsocket_template.backend import TemplateBackend
from opsocket_template.provider import TemplateProvider

class Doubled(AddPlan):
    def _run(self, a, b, out):
        return a + b + b if out is None else __import__("numpy").add(a + b, b, out=out)

class WrongProvider(TemplateProvider):
    def pick(self, device, request):
        answer = super().pick(device, request)
        return Pick(Doubled) if isinstance(answer, Pick) and isinstance(request.spec, AddSpec) else answer

class WrongBackend(TemplateBackend):
    def providers(self):
        return [WrongProvider()]

class TestWrong(ConformanceSuite):
    tier = "smoke"

    @classmethod
    def open_session(cls):
        backend = WrongBackend()
        return backend.open(backend.devices()[0], SessionOptions())
"""


@pytest.fixture
def run(template_site, tmp_path):
    """run(*arguments, file=text) -> completed pytest, its working directory `tmp_path`."""

    def run(*arguments: str, file: str = "") -> subprocess.CompletedProcess[str]:
        if file:
            (tmp_path / "test_mine.py").write_text(file)
        variables = {"PYTHONPATH": str(template_site), "OPSOCKET_PLUGINS": "template", "XDG_CONFIG_HOME": str(tmp_path)}
        plugin = () if REGISTERED else ("-p", "opsocket_conformance.pytest_plugin")
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *plugin, *arguments],
            env={**os.environ, **variables},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
        )

    return run


def verdicts(junit: Path) -> dict[str, tuple[str, str]]:
    """Case id -> our verdict and pytest's outcome, from a JUnit file."""
    found = {}
    for case in ET.parse(junit).iter("testcase"):
        kept = {p.get("name"): p.get("value") for p in case.iter("property")}
        outcome = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        found[kept["opsocket_case"]] = kept["opsocket_verdict"], outcome
    return found


def test_every_case_is_an_item_under_its_id_in_their_order(run):
    done = run("--collect-only", "--opsocket-backend=template", "--opsocket-tier=smoke")
    assert done.returncode == 0, done.stdout + done.stderr
    listed = [line.partition("::")[2] for line in done.stdout.splitlines() if line.startswith("opsocket[template]::")]
    assert listed == [case.id for case in cases_of("smoke")]


def test_verdicts_become_outcomes_alike_in_one_process_and_in_two(run, tmp_path):
    asked = ("--opsocket-backend=template", "--opsocket-tier=smoke", "--opsocket-profile=decoder,kv-int8")
    alone = run(*asked, f"--junitxml={tmp_path / 'one.xml'}")
    shared = run(*asked, "-n2", f"--junitxml={tmp_path / 'two.xml'}")
    assert alone.returncode == shared.returncode == 0, alone.stdout + shared.stdout
    assert verdicts(tmp_path / "one.xml") == verdicts(tmp_path / "two.xml")
    assert set(verdicts(tmp_path / "one.xml").values()) == {("PASS", "passed"), ("UNSUPPORTED", "skipped")}
    for done in (alone, shared):
        assert re.search(r"^  decoder: held \(f16 \(?f16\b", done.stdout, re.MULTILINE), done.stdout
        assert "  kv-int8: held" in done.stdout


def test_a_profile_that_is_not_held_fails_the_session_though_no_test_failed(run):
    done = run("--opsocket-backend=template", "--opsocket-tier=smoke", "--opsocket-profile=kv-int4")
    assert done.returncode == 1
    assert "FAILED template: profile kv-int4 not held, 5 cases missing" in done.stdout
    assert " failed" not in done.stdout.splitlines()[-1]


def test_a_session_in_which_nothing_passed_fails(run):
    done = run("--opsocket-backend=template", "--opsocket-tier=smoke", "--opsocket-filter=add[t=7,dtype=bf16", "-rs")
    assert done.returncode == 1
    assert "FAILED template: nothing passed: 1 UNSUPPORTED" in done.stdout
    assert "unsupported: dtype='bf16': wanted ('f32', 'f16')" in done.stdout


def test_a_filter_that_matches_nothing_fails(run):
    done = run("--opsocket-backend=template", "--opsocket-filter=no such case")
    assert done.returncode == 1
    assert "FAILED no case of opsocket conformance ran" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--opsocket-backend=tmplate"], "did you mean 'template'?"),
        (["--opsocket-backend=template", "--opsocket-profile=decodr"], "profile: wanted one of"),
        (["--opsocket-backend=template", "--opsocket-exclude=nowhere.yaml"], "nowhere.yaml: file:"),
    ],
    ids=["backend", "profile", "exclusions"],
)
def test_what_there_is_not_is_a_usage_error(run, arguments, told):
    done = run(*arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert told in done.stderr


def test_an_excluded_case_is_expected_to_fail_and_says_why(run, tmp_path):
    (tmp_path / "known.yaml").write_text("- {case: 'add[t=7,dtype=f16*', reason: a known bug, expires: 2999-01-01}\n")
    asked = ("--opsocket-backend=template", "--opsocket-tier=smoke", "--opsocket-filter=add[", "-rx")
    done = run(*asked, "--opsocket-exclude=known.yaml")
    assert done.returncode == 0, done.stdout
    assert "1 passed, 1 skipped, 1 xfailed" in done.stdout
    assert "excluded: a known bug (until 2999-01-01)" in done.stdout


def test_the_class_brings_the_cases_and_a_failure_says_what_and_how_often(run):
    done = run("-k", "add", file=WRONG_ADD)
    assert done.returncode == 1
    assert re.search(
        r"^_+ TestWrong.test_conformance\[add\[t=7,dtype=f16,width=536\]#0\] _+$", done.stdout, re.MULTILINE
    )
    assert re.search(r"^FAIL: y\[\d+, \d+\]: \S+, wanted \S+ \+- \S+ \(ratio ", done.stdout, re.MULTILINE), done.stdout
    assert "TestWrong, tier smoke: 2 PASS, 2 FAIL, 3 UNSUPPORTED" in done.stdout


def test_the_class_finds_its_backend_by_name_and_demands_its_profiles(run):
    head = "from opsocket_conformance.testing import ConformanceSuite\n\nclass TestMine(ConformanceSuite):\n"
    body = '    backend, tier, profiles = "template", "smoke", ("decoder", "kv-int4")\n'
    done = run(file=head + body)
    assert done.returncode == 1
    assert "FAILED TestMine: profile kv-int4 not held" in done.stdout
    assert "  decoder: held" in done.stdout
    assert "Warning" not in done.stdout


def test_a_session_that_can_not_be_opened_fails_every_case_with_the_reason(run):
    text = "from opsocket_conformance.testing import ConformanceSuite\n\nclass TestNone(ConformanceSuite):\n    pass\n"
    done = run("-k", "silu_mul and smoke or take_rows and f16", file=text)
    assert done.returncode == 1
    assert "no session to run it on: TestNone.backend: wanted a backend's name" in done.stdout


def test_without_the_option_nothing_is_imported(run):
    modules = "('numpy', 'opsocket.operators', 'opsocket_conformance.case')"
    done = run(file=f"def test_mine():\n    import sys\n    assert not [m for m in {modules} if m in sys.modules]\n")
    assert done.returncode == 0, done.stdout
    assert "opsocket conformance" not in done.stdout
