"""A newcomer's slips in what a kernel hands back are told in words, not as bits or as a crash inside the suite."""

from __future__ import annotations

import importlib

import numpy as np
import pytest

from opsocket.operators import Pick, SessionOptions
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.runner import run_case

ADD = "add[t=5,dtype=f32,width=64]#0"
ATTENTION = "attention[hq=14,hkv=2,d=64,q=f32,batch=decode,x=normal]#0"


@pytest.fixture
def findings(template_site, monkeypatch):
    """findings(case id, module, kernel, run) -> the messages of the case with that kernel's `_run` replaced."""
    monkeypatch.syspath_prepend(str(template_site))

    def findings(case_id: str, module: str, kernel: str, run) -> str:
        right = getattr(importlib.import_module(f"opsocket_template.kernels.{module}"), kernel)
        slip = type("Slip", (right,), {"_run": run(right._run), "__module__": "plugin"})
        backend = importlib.import_module("opsocket_template.backend").TemplateBackend()
        provider = backend.providers()[0]
        pick = provider.pick

        def picked(self, device, request):
            return Pick(slip) if isinstance(request.spec, slip.spec_type) else pick(device, request)

        monkeypatch.setattr(type(provider), "pick", picked)
        session = backend.open(backend.devices()[0], SessionOptions())
        result = run_case(parse_case(case_id, CHECKS), session, 0, 60.0)
        monkeypatch.undo()
        return "\n".join(result.messages)

    return findings


def add(change):
    """The right result of `add`, changed, whatever `out` is."""
    return lambda right: lambda self, a, b, out: change(right(self, a, b, None))


@pytest.mark.parametrize(
    ("case_id", "module", "kernel", "run", "told"),
    [
        (ADD, "model", "Add", add(lambda y: y), "out was given and not written: write to it and return it"),
        (ADD, "model", "Add", add(lambda y: None), "Slip._run returned NoneType, wanted an array"),
        (ADD, "model", "Add", add(lambda y: y.astype(np.float64)), "out: f64[5, 64] came, wanted f32[5, 64]"),
        (ADD, "model", "Add", add(lambda y: y[:-1]), "out: f32[4, 64] came, wanted f32[5, 64]"),
        (
            ATTENTION,
            "attention",
            "Attention",
            lambda right: lambda self, *args, **kwargs: right(self, *args)[0],
            "Slip._run returned ndarray, wanted a tuple (out, lse)",
        ),
        (
            ATTENTION,
            "cache",
            "CacheWrite",
            lambda right: lambda self, cache, k, v: None,
            "Slip._run returned NoneType, wanted the cache that was written",
        ),
    ],
    ids=["out forgotten", "nothing", "wide", "short", "half a pair", "no cache"],
)
def test_it_is_told(findings, case_id, module, kernel, run, told):
    assert told in findings(case_id, module, kernel, run)


def test_a_triple_that_lacks_a_part_is_told(judge):
    found = judge("moe_sort[]#0", "moe_sort", result=lambda plan, right, args: right[:2])
    assert "wanted a tuple (rows, expert_offsets, slots)" in "\n".join(found.messages)
