"""Which backend a name means, among real installed plugins."""

from __future__ import annotations

import logging
import os

import pytest

import opsocket
from opsocket import ContractError, PluginError
from opsocket.runtime import RuntimeConfig, load_config, open_session, select

pytestmark = pytest.mark.install


def config(backend: str | None = None, *plugins: str, **environment: str) -> RuntimeConfig:
    flags = {"plugins.allow": list(plugins), **({} if backend is None else {"backend": backend})}
    return load_config(flags=flags, environment={"XDG_CONFIG_HOME": os.devnull, **environment})


def test_a_name_is_opened_and_works(on_path):
    with open_session(config("good", "good", "exits", "liar")) as session:
        plan = session.plan(opsocket.Request(opsocket.AddSpec(4)))
        a = session.upload([[1, 2, 3, 4]]).astype("f4")
        assert plan.run(a, a).tolist() == [[2, 4, 6, 8]]
        assert str(session.device) == "good:0"


def test_the_library_call_says_the_same_as_the_configuration(on_path):
    with opsocket.open("good", config=config(None, "good"), threads=1) as session:
        assert session.options.threads == 1
    with opsocket.open(config=config("good", "good"), operators={"add": "numpy"}) as session:
        assert session.options.pins == {"add": "numpy"}


def test_auto_takes_the_largest_accelerator_that_is_real_and_says_what_it_passed_over(on_path, caplog):
    with caplog.at_level(logging.INFO, "opsocket"):
        selection = select(config("auto", "emulator", "good", "deviceless", "exits"))
    assert str(selection.device) == "large:0"
    reasons = {p.subject: p.reason for p in selection.passed_over}
    assert reasons["emulated:0"] == "emulated"
    assert {"cpu:0", "large:1", "good:0"} <= {s for s, reason in reasons.items() if reason == "ranked below"}
    assert "/dev/sample0 is absent" in reasons["backend 'deviceless'"]
    assert "SystemExit" in reasons["plugin 'exits'"]
    (line,) = caplog.messages
    assert line.startswith("auto took large:0")
    assert "emulated:0: emulated" in line


def test_auto_passes_over_a_backend_that_lies(on_path):
    selection = select(config("auto", "liar", "good"))
    assert str(selection.device) == "good:0"
    assert "no plan of matmul" in {p.subject: p.reason for p in selection.passed_over}["liar:0"]


def test_auto_with_nothing_to_take_says_why(on_path):
    with pytest.raises(PluginError, match=r"no device to run on.*/dev/sample0 is absent") as caught:
        select(config("auto", "deviceless"))
    assert caught.value.stage == "available"


@pytest.mark.parametrize(("name", "device"), [("large", "large:0"), ("large:1", "large:1"), ("emulated", "emulated:0")])
def test_a_device_is_taken_by_name_and_index(on_path, name, device):
    assert str(select(config(name, "emulator")).device) == device


@pytest.mark.parametrize(
    ("name", "stage", "words"),
    [
        ("large:2", "available", "there is large:0, large:1"),
        ("deviceless", "available", "/dev/sample0 is absent.*plug one in"),
        ("liar", "validated", "no plan of matmul"),
        ("interface9", "compatible", "written for interface >=9.0,<10"),
        ("exits", "imported", "SystemExit: 7"),
        ("requires99", "compatible", "requires opsocket>=99"),
        ("twin", "imported", "plugins.allow"),
        ("tpu", "discovered", "no installed plugin provides it"),
    ],
)
def test_a_name_that_cannot_be_had_says_the_stage_the_cause_and_what_to_do(on_path, name, stage, words):
    with pytest.raises(PluginError, match=words) as caught:
        select(config(name, "emulator", "deviceless", "liar", "interface9", "exits", "requires99"))
    assert caught.value.stage == stage


def test_the_chips_driver_is_looked_for(on_path):
    with pytest.raises(PluginError, match=r"Google.*good") as caught:
        select(config("tpu", "good"))
    assert "TPU driver here" in str(caught.value)


def test_an_unknown_name_lists_what_there_is_and_the_nearest(on_path):
    with pytest.raises(ContractError, match=r"one of auto, good, got 'goood'; did you mean 'good'\?"):
        select(config("goood", "good"))
    with pytest.raises(ContractError, match=r"environment OPSOCKET_BACKEND.*plugin 'exits' did not load: .*SystemExit"):
        select(config(None, "good", "exits", OPSOCKET_BACKEND="nonsense"))


def test_an_error_at_opening_names_the_stage_and_nothing_else_is_tried(on_path):
    with pytest.raises(PluginError, match="the firmware does not answer") as caught:
        open_session(config("faulty", "emulator"))
    assert caught.value.stage == "opened"
    assert "RuntimeError" in (caught.value.traceback or "")


def test_a_pin_must_name_a_provider_of_the_backend(on_path):
    good = config("good", "good")
    with pytest.raises(ContractError, match=r"operators\.add.*a provider of good: numpy, got 'torch'"):
        select(good.override("flag", {"operators": "add=torch"}))
    pinned = good.override("flag", {"operators": "add=other/torch,rope=good/numpy"})
    assert select(pinned).backend.info.name == "good"
    assert pinned.pins_for("good") == {"rope": "numpy"}


def test_of_two_backends_with_one_name_the_entry_point_of_that_name_wins(on_path):
    assert select(config("good", "good", "twin")).backend.info.vendor == "Samples Inc"
    assert select(config("good", "twin")).backend.info.vendor == "Another Inc"


def test_asking_for_a_backend_by_its_plugins_name_imports_no_other_plugin(wild, opsocket_command):
    done = opsocket_command(wild, "good,hangs,crashes", "explain", "--backend", "good", "--request", "{}")
    assert done.returncode == 2
    assert "request.op" in done.stderr
