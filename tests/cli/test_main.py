"""The command itself: what it says, how it ends, and what it does not import."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from opsocket.cli.main import cli as command

HEAVY = ("torch", "numpy", "rich", "yaml")


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command in this process, with no plugin and no configuration file in sight."""
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("OPSOCKET_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPSOCKET_PLUGINS", "none")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return lambda *arguments, **options: CliRunner().invoke(command, arguments, prog_name="opsocket", **options)


def modules_after(code: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules, file=sys.stderr)"],
        capture_output=True,
        text=True,
        check=True,
    )
    return {name.partition(".")[0] for name in done.stderr.split()}


def test_importing_the_package_imports_no_framework():
    assert modules_after("import opsocket") & set(HEAVY) == set()
    assert "torch" not in modules_after("import opsocket; opsocket.Request; opsocket.open")


def test_help_imports_no_framework_and_no_command():
    code = "from opsocket.cli.main import cli; cli(['--help'], standalone_mode=False)"
    assert modules_after(code) & {*HEAVY, "opsocket_cpu"} == set()


def test_help_lists_the_commands_and_the_exit_codes(run):
    result = run("--help")
    assert result.exit_code == 0
    for name in ("backends", "completion", "config", "doctor", "explain", "generate", "conformance", "bench"):
        assert f"\n  {name} " in result.output
    assert "List the backends, their devices, and why one is missing." in result.output
    for code in ("0 done", "1 it ran and failed", "2 wrong", "3 no such backend"):
        assert code in " ".join(result.output.split())


@pytest.mark.parametrize(
    "arguments",
    [["backends"], ["doctor"], ["explain"], ["config"], ["config", "show"], ["config", "check"], ["completion"]],
)
def test_every_command_explains_itself(run, arguments):
    result = run(*arguments, "--help")
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 4


def test_the_version(run):
    import opsocket

    assert run("--version").output == f"opsocket {opsocket.__version__} (interface {opsocket.INTERFACE_VERSION})\n"


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nonsense"], 2, "No such command"),
        (["generat"], 2, "No such command 'generat'. Did you mean 'generate'?"),
        (["backends", "--nonsense"], 2, "No such option"),
        (["explain"], 2, "give one of FILE, --request or --model"),
        (["explain", "--request", "{}", "--kv-format", "i8"], 2, "--kv-format says how a model is run"),
        (["explain", "--request", "{}", "--backend", "tpu"], 3, "backend 'tpu': not discovered"),
        (["explain", "--request", "{}", "--backend", "cud"], 2, "did you mean 'cuda'?"),
        (["explain", "--request", "{}", "--backend", "no backend"], 2, "flag --backend: wanted a backend such as"),
        (["explain", "--request", "{}", "--pin", "matmull=torch"], 2, "flag --pin: wanted one of add"),
        (["explain", "--request", "{}"], 3, "no device to run on"),
        (["explain", "--request", "{}", "--assume", "sm_90"], 2, "a backend's name, got 'auto'"),
        (["config", "check", "absent.yaml"], 2, "does not exist"),
        (["config", "show", "--config", "absent.yaml"], 2, "does not exist"),
        (["completion", "tcsh"], 2, "tcsh"),
    ],
)
def test_how_it_ends_when_something_is_wrong(run, arguments, code, words):
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert words in result.stderr
    assert "Traceback" not in result.stderr


def test_a_slip_in_the_configuration_is_shown_with_its_line(run):
    Path("opsocket.yaml").write_text("threads: 2\nbakend: cpu\n")
    for arguments in (["config", "show"], ["backends"], ["explain", "--request", "{}"]):
        result = run(*arguments)
        assert result.exit_code == 2
        assert (
            result.stderr
            == "opsocket: opsocket.yaml: line 2, column 1: unknown key 'bakend'; did you mean 'backend'?\n"
        )


def test_debug_shows_the_traceback(run):
    assert "Traceback" in run("--debug", "config", "check", "absent.yaml").stderr


def test_config_show_says_where_each_value_came_from(run):
    Path("opsocket.yaml").write_text("threads: 2\noperators: {matmul: torch}\n")
    arguments = ("config", "show", "--backend", "cuda:1")
    rows = {line.split()[0]: line.split()[1:] for line in run(*arguments).output.splitlines()}
    assert rows["backend"] == ["cuda:1", "flag", "--backend"]
    assert rows["threads"] == ["2", "file", "opsocket.yaml:1:10"]
    assert rows["operators.matmul"] == ["torch", "file", "opsocket.yaml:2:21"]
    assert rows["plugins.allow"] == ["none", "environment", "OPSOCKET_PLUGINS"]
    assert rows["checked"] == ["shapes", "default"]
    values = {item["key"]: item for item in json.loads(run(*arguments, "--json").output)}
    assert values["backend"] == {"key": "backend", "value": "cuda:1", "source": "flag", "where": "--backend"}
    assert set(values) == set(rows) - {"KEY"}


def test_config_check(run):
    Path("some.yaml").write_text("engine: {block_size: 16}\n")
    result = run("config", "check", "some.yaml")
    assert (result.exit_code, result.output) == (0, "some.yaml: correct; sets engine.block_size\n")


@pytest.mark.parametrize("arguments", [["config", "schema"], ["config", "show", "--json"], ["backends", "--json"]])
def test_json_is_json(run, arguments):
    result = run(*arguments)
    assert result.exit_code == 0
    json.loads(result.stdout)


def test_backends_names_the_chips_that_no_plugin_serves(run):
    result = run("backends")
    assert result.exit_code == 0
    rows = {line.split()[0]: line for line in result.output.splitlines()}
    assert "not discovered" in rows["tpu"]
    assert "TPU driver" in rows["tpu"]
    missing = {chip["name"]: chip for chip in json.loads(run("backends", "--json").output)["not_installed"]}
    assert missing["tpu"]["driver_present"] == Path("/dev/accel0").exists()


@pytest.mark.parametrize(
    ("shell", "words"), [("bash", "complete -o nosort"), ("zsh", "#compdef"), ("fish", "--command")]
)
def test_completion_prints_a_script_that_calls_the_command(run, shell, words):
    result = run("completion", shell)
    assert result.exit_code == 0
    assert words in result.stdout
    assert "_OPSOCKET_COMPLETE" in result.stdout


def test_completion_completes_commands_and_options():
    def complete(words: str, at: int) -> list[str]:
        variables = {"_OPSOCKET_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(at)}
        program = Path(sys.executable).parent / "opsocket"
        done = subprocess.run([program], env={**os.environ, **variables}, capture_output=True, text=True, check=True)
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert complete("opsocket co", 1) == ["completion", "config", "conformance"]
    assert "--json" in complete("opsocket backends --", 2)
