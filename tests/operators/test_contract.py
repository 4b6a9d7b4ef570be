"""A plugin's class is checked when it is defined: a renamed hook fails loudly instead of never being called."""

from __future__ import annotations

import pytest

from opsocket.operators import AddPlan, AttentionPlan, Backend, PluginError, Provider, Session


def test_a_renamed_method_is_refused_with_the_nearest_name():
    with pytest.raises(PluginError, match="'device' is not part of the interface; was 'devices' meant") as caught:

        class Renamed(Backend):
            def device(self):
                return []

    assert caught.value.stage == "validated"


def test_a_lost_parameter_is_refused():
    with pytest.raises(PluginError, match="lacks parameter 'request'"):

        class Lost(Provider):
            def pick(self, device):
                return ()


def test_swapped_parameters_are_refused():
    with pytest.raises(PluginError, match="'device' must be positional number 1"):

        class Swapped(Provider):
            def pick(self, request, device):
                return ()


def test_an_extra_parameter_without_default_is_refused():
    with pytest.raises(PluginError, match="'options' is not in the interface and has no default"):

        class Extra(Provider):
            def pick(self, device, request, options):
                return ()


def test_a_kernel_hook_is_checked_too():
    with pytest.raises(PluginError, match="lacks parameter 'alibi'"):

        class Old(AttentionPlan):
            def _run(self, q, kv, sinks, tree_mask, out, lse_out):
                return q, None


@pytest.mark.parametrize(
    ("base", "name"), [(AddPlan, "run"), (Session, "plan"), (Backend, "supports"), (AddPlan, "update")]
)
def test_what_holds_cores_rules_can_not_be_overridden(base, name):
    with pytest.raises(PluginError, match=f"'{name}' is the interface's own"):
        type("Override", (base,), {name: lambda self, *args, **kwargs: None, "__module__": "plugin"})


@pytest.mark.parametrize(("slip", "hook"), [("_updaet", "_update"), ("_setupp", "_setup"), ("_rnu", None)])
def test_a_misspelt_kernel_hook_is_refused_before_it_is_never_called(slip, hook):
    members = {slip: lambda self: None, "__module__": "plugin"}
    if hook is None:
        type("Helper", (AddPlan,), members)
        return
    with pytest.raises(PluginError, match=f"'{slip}' is never called; was '{hook}' meant"):
        type("Slip", (AddPlan,), members)


def test_helpers_and_added_defaults_are_free():
    class Fine(Provider):
        name = "fine"

        def pick(self, device, request, strict=False):
            return self._no()

        def _no(self):
            return ()

        def __repr__(self):
            return "fine"

    assert repr(Fine()) == "fine"
