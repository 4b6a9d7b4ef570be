"""The reusable GitHub Action and workflow: whole as YAML, and the script that they run, run for real."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
ACTION = ROOT / ".github" / "actions" / "conformance"
WORKFLOW = ROOT / ".github" / "workflows" / "conformance.yml"
TEMPLATE = ROOT / "examples" / "plugin_template" / ".github" / "workflows" / "conformance.yml"


def load(path: Path) -> dict:
    """A workflow as GitHub reads it; YAML 1.1 takes its key `on` for a truth value."""
    data = yaml.safe_load(path.read_text())
    return {("on" if key is True else key): value for key, value in data.items()}


action, workflow = load(ACTION / "action.yml"), load(WORKFLOW)
steps = [*action["runs"]["steps"], *(step for job in workflow["jobs"].values() for step in job["steps"])]


@pytest.mark.parametrize(
    ("path", "declared"),
    [(ACTION / "action.yml", action["inputs"]), (WORKFLOW, workflow["on"]["workflow_call"]["inputs"])],
    ids=["action", "workflow"],
)
def test_every_input_is_declared_described_and_used(path, declared):
    assert set(re.findall(r"inputs\.([a-z-]+)", path.read_text())) == set(declared)
    assert all(each["description"] for each in declared.values())
    assert all(("default" in each) != each.get("required", False) for each in declared.values())


def test_what_calls_passes_what_is_there():
    job = workflow["jobs"]["conformance"]
    call = next(step for step in job["steps"] if step.get("uses", "").endswith(".github/actions/conformance"))
    required = {name for name, each in action["inputs"].items() if each.get("required")}
    assert required <= set(call["with"]) <= set(action["inputs"])
    inputs = workflow["on"]["workflow_call"]["inputs"]
    for each in load(TEMPLATE)["jobs"].values():
        assert each["uses"].split("/", 1)[1].startswith("opsocket/.github/workflows/conformance.yml@")
        assert {"backend"} <= set(each["with"]) <= set(inputs)


@pytest.mark.parametrize("script", [step["run"] for step in steps if "run" in step])
def test_shell_steps_parse_and_take_inputs_as_variables_only(script):
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    assert "${{" not in script


def test_the_variables_of_the_script_are_those_that_the_action_sets():
    step = next(step for step in steps if step.get("id") == "conformance")
    read = set(re.findall(r"\$\{([A-Z]+):", (ACTION / "run.sh").read_text()))
    assert read == set(step["env"])


def test_the_list_of_shards_is_json(tmp_path):
    script = next(step["run"] for step in steps if step.get("id") == "shards")
    variables = {**os.environ, "COUNT": "3", "GITHUB_OUTPUT": str(tmp_path / "out")}
    subprocess.run(["bash", "-e", "-c", script], env=variables, check=True)
    name, _, value = (tmp_path / "out").read_text().strip().partition("=")
    assert (name, json.loads(value)) == ("list", [1, 2, 3])


@pytest.fixture
def run_script(template_site, tmp_path):
    """run_script(**variables) -> completed run.sh, in `tmp_path`, on the plugin template's backend."""

    def run(**variables: str) -> subprocess.CompletedProcess[str]:
        kept = {name: text for name, text in os.environ.items() if not name.startswith(("OPSOCKET_", "GITHUB_"))}
        given = {
            "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}",
            "PYTHONPATH": str(template_site),
            "OPSOCKET_PLUGINS": "template",
            "XDG_CONFIG_HOME": str(tmp_path),
            "GITHUB_STEP_SUMMARY": str(tmp_path / "summary.md"),
            "GITHUB_OUTPUT": str(tmp_path / "output"),
        }
        command = ["bash", str(ACTION / "run.sh")]
        environment = kept | given | variables
        return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def test_a_green_run_leaves_reports_a_summary_and_says_so(run_script, tmp_path):
    done = run_script(BACKEND="template", TIER="smoke", SHARD="1/2", REPORTS="out")
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "out" / "conformance.json").read_text())
    assert report["verdict"]["green"]
    assert {"conformance.json", "conformance.xml", "conformance.md"} <= set(os.listdir(tmp_path / "out"))
    assert (tmp_path / "summary.md").read_text() == (tmp_path / "out" / "conformance.md").read_text()
    assert (tmp_path / "output").read_text() == "green=true\n"


def test_a_red_run_ends_red_and_keeps_its_reports(run_script, tmp_path):
    done = run_script(BACKEND="template", TIER="smoke", PROFILE="kv-int4")
    assert done.returncode == 1
    assert (tmp_path / "output").read_text() == "green=false\n"
    assert "kv-int4" in (tmp_path / "summary.md").read_text()


def test_without_a_backend_it_says_what_is_missing(run_script):
    done = run_script()
    assert done.returncode != 0
    assert "BACKEND: the backend to test" in done.stderr
