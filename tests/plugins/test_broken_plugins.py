"""Real distributions that are broken in all the ways we could think of, installed side by side: each is listed with the
stage it did not reach and the cause, and none disturbs another."""

from __future__ import annotations

import pytest

pytestmark = pytest.mark.install

EXPECTED = {
    # sample: (stage not reached, words of the cause)
    "unimportable": ("imported", ["ModuleNotFoundError", "a_library_that_is_not_installed"]),
    "exits": ("imported", ["SystemExit", "7"]),
    "requires99": ("compatible", ["opsocket>=99", "this is opsocket 0."]),
    "renamed": ("validated", ["get_devices", "not part of the interface", "was 'devices' meant?"]),
    "unfinished": ("validated", ["Unfinished", "abstract method", "open"]),
    "misspelt": ("validated", ["opsocket_backend", "was 'opsocket_backends' meant?"]),
    "signature": ("validated", ["opsocket_backends", "config"]),
}
EXPECTED_OF_BACKEND = {
    "interface9": ("compatible", [">=9.0,<10", "this is interface 1.0"]),
    "liar": ("validated", ["pick(matmul)", "picked Add", "no plan of matmul"]),
    "raises": ("validated", ["supports(attention) raised", "KeyError"]),
    "twin": ("validated", ["sample-good", "sample-twin", "'good'", "refused"]),
    "deviceless": ("available", ["/dev/sample0 is absent"]),
}


@pytest.mark.parametrize("sample", EXPECTED)
def test_a_plugin_is_listed_with_the_stage_it_did_not_reach_and_the_cause(listed, sample):
    stage, words = EXPECTED[sample]
    fault = listed[sample]["fault"]
    assert fault["stage"] == stage
    assert fault["broken"]
    assert [word for word in words if word not in fault["cause"]] == []
    assert listed[sample]["backends"] == []


@pytest.mark.parametrize("sample", EXPECTED_OF_BACKEND)
def test_a_backend_is_listed_with_the_stage_it_did_not_reach_and_the_cause(listed, sample):
    stage, words = EXPECTED_OF_BACKEND[sample]
    assert listed[sample]["fault"] is None
    (backend,) = listed[sample]["backends"]
    assert backend["fault"]["stage"] == stage
    assert [word for word in words if word not in backend["fault"]["cause"]] == []
    assert backend["devices"] == []


@pytest.mark.parametrize("sample", ["good", "prints"])
def test_what_is_in_order_is_available_beside_all_the_broken_ones(listed, sample):
    (backend,) = listed[sample]["backends"]
    assert backend["reached"] == "available"
    assert backend["fault"] is None
    assert [device["name"] for device in backend["devices"]] == ["NumPy"]


def test_every_sample_is_listed(listed):
    covered = {"good", "prints", "retracts", "emulator", *EXPECTED, *EXPECTED_OF_BACKEND}
    assert covered <= set(listed)


def test_a_distribution_for_another_opsocket_is_never_imported(listed):
    assert not listed["requires99"]["was_imported"]


def test_an_absent_chip_is_no_fault_and_says_what_to_do(listed):
    fault = listed["deviceless"]["backends"][0]["fault"]
    assert not fault["broken"]
    assert fault["hint"] == "plug one in"


def test_the_traceback_starts_in_the_plugin_itself(listed):
    trace = listed["unimportable"]["fault"]["traceback"].splitlines()
    assert trace[0].startswith("Traceback")
    assert "sample_unimportable" in trace[1]


def test_the_table_has_a_line_for_each_and_tracebacks_with_v(installed, opsocket_command):
    allow = "good,exits,liar"
    plain = opsocket_command(installed, allow, "backends")
    assert plain.returncode == 0
    rows = {line.split()[0]: line for line in plain.stdout.splitlines() if line}
    assert "available" in rows["good"]
    assert "not imported" in rows["(exits)"]
    assert "not validated" in rows["liar"]
    assert "SystemExit" in rows["(exits)"]
    assert "plugins.allow" in rows["(twin)"]
    assert "Traceback" not in plain.stdout
    assert "Traceback" in opsocket_command(installed, allow, "backends", "-v").stdout


def test_what_a_plugin_prints_goes_to_stderr(installed, opsocket_command):
    done = opsocket_command(installed, "prints", "backends", "--json")
    assert "hello from a plugin" in done.stderr
    assert done.stdout.startswith("{")


def test_importing_opsocket_runs_no_plugin(installed, opsocket_command, tmp_path):
    import subprocess
    import sys

    code = "import opsocket, sys; print([m for m in sys.modules if m.startswith('sample_')])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(installed)}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("allow", "loaded"),
    [("none", set()), ("good", {"good"}), ("sample-good, deviceless", {"good", "deviceless"})],
)
def test_only_what_is_allowed_is_imported(installed, opsocket_command, allow, loaded, tmp_path):
    import json

    done = opsocket_command(installed, allow, "backends", "--json", SAMPLE_IMPORTED=str(tmp_path / "marker"))
    plugins = {plugin["name"]: plugin for plugin in json.loads(done.stdout)["plugins"]}
    assert {name for name, plugin in plugins.items() if plugin["import_seconds"] is not None} == loaded
    kept_out = plugins["twin"]["fault"]
    assert "plugins.allow" in kept_out["cause"]
    assert not kept_out["broken"]
