"""`opsocket doctor`: what can't be bounded inside our process is found from outside."""

from __future__ import annotations

import json

import pytest

pytestmark = pytest.mark.install


@pytest.fixture(scope="module")
def examined(wild, opsocket_command):
    done = opsocket_command(
        wild, "hangs,crashes,good,prints,retracts", "doctor", "--json", "--timeout", "6", XDG_CONFIG_HOME=str(wild)
    )
    report = json.loads(done.stdout)
    return done.returncode, {plugin["name"]: plugin for plugin in report["plugins"]}, report["facts"]


def test_a_good_plugin_is_opened(examined):
    _, plugins, _ = examined
    (backend,) = plugins["good"]["backends"]
    assert backend["reached"] == "opened"
    assert backend["fault"] is None
    assert plugins["good"]["warnings"] == []
    assert 0 < plugins["good"]["import_seconds"] < plugins["good"]["probe_seconds"]


def test_a_hanging_import_is_stopped_and_says_where_it_hung(examined):
    _, plugins, _ = examined
    fault = plugins["hangs"]["fault"]
    assert fault["stage"] == "imported"
    assert "after 6 s" in fault["cause"]
    assert "sample_hangs" in fault["traceback"]
    assert 6 <= plugins["hangs"]["probe_seconds"] < 20


def test_a_crash_is_reported_with_its_signal_and_place(examined):
    _, plugins, _ = examined
    fault = plugins["crashes"]["fault"]
    assert fault["stage"] == "imported"
    assert "SIGSEGV" in fault["cause"]
    assert "sample_crashes" in fault["traceback"]


def test_writing_to_stdout_is_a_warning(examined):
    _, plugins, _ = examined
    assert plugins["prints"]["fault"] is None
    (warning,) = plugins["prints"]["warnings"]
    assert "hello from a plugin" in warning


def test_a_yes_that_plan_denies_is_found(examined):
    _, plugins, _ = examined
    (backend,) = plugins["retracts"]["backends"]
    assert backend["fault"]["stage"] == "opened"
    assert "supports(add) says yes" in backend["fault"]["cause"]


def test_broken_plugins_make_the_exit_code_1(examined, wild, opsocket_command):
    code, _, facts = examined
    assert code == 1
    assert facts["python"]
    assert opsocket_command(wild, "good", "doctor", "--timeout", "30").returncode == 0
