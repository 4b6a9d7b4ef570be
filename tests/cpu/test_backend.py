"""The backend as a whole: what it says about itself, what it imports when, and that yes means yes."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

import opsocket
from opsocket.operators import (
    AddSpec,
    AttentionSpec,
    CacheSpec,
    CacheWriteSpec,
    ContractError,
    DeviceInfo,
    KVFormat,
    MatmulSpec,
    Numerics,
    Request,
    SampleSpec,
    Unsupported,
)


def _python(code: str, *options: str) -> str:
    done = subprocess.run(
        [sys.executable, *options, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_looking_and_refusing_import_no_torch():
    _python("""
        import sys
        from opsocket.operators import *
        from opsocket_cpu.plugin import opsocket_backends
        (backend,) = opsocket_backends()
        (device,) = backend.devices()
        assert device.memory_bytes > 0 and device.name and device.arch
        absent = DeviceInfo("cpu", 0, "another", "riscv64", 1 << 30)
        refused = CacheSpec(4, 4, 1, 8, 8, KVFormat("i8", "head", zero_point=True), KVFormat("f32"))
        assert not backend.supports(absent, Request(CacheWriteSpec(), refused))
        assert not backend.supports(device, Request(MatmulSpec("q4_0", 8, 33)))
        for provider in backend.providers():
            provider.layouts(device, CacheSpec(4, 4, 1, 8, 8, KVFormat("i4", "head"), KVFormat("f32")))
        assert "torch" not in sys.modules
    """)


def test_without_torch_the_backend_is_absent_and_every_answer_says_why():
    _python("""
        import importlib.util, sys
        from opsocket.operators import *
        find = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "torch" else find(name, *rest)
        from opsocket_cpu.backend import CpuBackend
        backend = CpuBackend()
        assert not backend.devices()
        assert "torch" in backend.absence().reason and "opsocket[cpu]" in backend.absence().hint
        device = DeviceInfo("cpu", 0, "some", "x86_64", 1 << 30)
        for spec in (MatmulSpec("f32", 8, 8), AddSpec(4)):
            support = backend.supports(device, Request(spec))
            assert not support and "package" in [r.code for r in support.reasons]
        assert "torch" not in sys.modules
    """)


def test_threads_are_those_asked_for_or_the_cores_of_the_process():
    out = _python("""
        import os, opsocket, torch
        opsocket.open("cpu").close()
        assert torch.get_num_threads() == len(os.sched_getaffinity(0))
        opsocket.open("cpu", threads=3).close()
        print(torch.get_num_threads())
    """)
    assert out.strip() == "3"


def test_threads_below_one_are_refused(session: Any):
    with pytest.raises(ContractError):
        opsocket.open("cpu", threads=0)


def test_the_session_describes_itself(session: Any):
    assert str(session.device) == "cpu:0"
    assert session.memory().total == session.device.memory_bytes
    array = session.upload(np.arange(6, dtype=np.float32).reshape(2, 3))
    assert session.describe(array).device == "cpu:0"
    session.synchronize()


def test_numbers_that_memory_does_not_hold_are_refused(session: Any):
    """torch's views with the negative bit: a kernel would read them with the other sign."""
    plan, x = session.plan(Request(AddSpec(4))), torch.ones(2, 4)
    pair = torch.complex(x, x).conj()
    for negated in (torch._neg_view(x), pair.imag):
        with pytest.raises(ContractError, match="resolve_neg"):
            plan.run(negated, x)
        with pytest.raises(ContractError, match="resolve_neg"):
            session.describe(negated)
        assert not plan.run(negated.resolve_neg().contiguous(), x).any()
    with pytest.raises(ContractError, match="resolve_neg"):
        plan.run(x, x, out=torch._neg_view(torch.empty(2, 4)))


CACHE = CacheSpec(4, 16, 2, 8, 8, KVFormat("f32"), KVFormat("f32"))


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        (Request(AttentionSpec(4, 4, 8, 8, 1.0), CACHE), ["num_kv_heads"]),
        (Request(AttentionSpec(4, 2, 16, 9, 1.0), CACHE), ["head_dim_qk", "head_dim_vo"]),
        (Request(AttentionSpec(4, 2, 8, 8, 1.0, numerics=Numerics(accumulate="f64"))), ["numerics.accumulate"]),
    ],
)
def test_a_refusal_names_every_field_and_plan_raises_it(session: Any, request_: Request, fields: list[str]):
    support = session.supports(request_)
    assert [r.field for r in dict(support.passed_over)["torch"]] == fields
    with pytest.raises(Unsupported) as refused:
        session.plan(request_)
    assert refused.value.reasons == support.reasons


@pytest.mark.parametrize("probabilities", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("exp", ["exact", "approx"])
def test_numerics_that_f32_satisfies_are_served(session: Any, probabilities: Any, exp: Any):
    spec = AttentionSpec(4, 2, 8, 8, 1.0, numerics=Numerics(probabilities, exp, exp))
    assert session.supports(Request(spec)).tier == "native"


@pytest.mark.parametrize("dequantized", ["f32", "f16", "bf16"])
def test_sums_may_be_better_than_a_matrix_units_and_dequantized_values_exact(session: Any, dequantized: Any):
    numerics = Numerics(accumulate="f32_truncating", accumulate_step=16, dequantized=dequantized)
    for spec in (AttentionSpec(4, 2, 8, 8, 1.0, numerics=numerics), MatmulSpec("q4_0", 8, 32, numerics=numerics)):
        assert session.supports(Request(spec)).tier == "native"


def test_who_serves_what():
    device = DeviceInfo("cpu", 0, "another", "aarch64", 1 << 30)
    from opsocket_cpu.backend import CpuBackend
    from opsocket_cpu.native.library import absence

    backend = CpuBackend()
    write = backend.supports(device, Request(CacheWriteSpec(), replace(CACHE, block_size=4)))
    assert (write.provider, write.tier) == ("torch", "native")
    sample = backend.supports(device, Request(SampleSpec(8)), {"sample": "composed"})
    assert (sample.provider, sample.tier) == ("composed", "composed")
    if absence() is None:
        assert backend.supports(device, Request(SampleSpec(8))).provider == "native"
    assert not backend.supports(device, Request(SampleSpec(8)), {"sample": "torch"})


def test_layouts_of_a_request_survive_json(session: Any):
    (layout,) = session.cache_layouts(CacheSpec(4, 4, 2, 8, 8, KVFormat("i4", "token_head"), KVFormat("f8e4m3fn")))
    request = Request(
        CacheWriteSpec(), CacheSpec(4, 4, 2, 8, 8, KVFormat("i4", "token_head"), KVFormat("f8e4m3fn")), layout
    )
    again = Request.loads(request.dumps())
    assert again == request
    assert session.supports(again)


def test_matmul_pins_hold(session: Any):
    with opsocket.open("cpu", threads=1, operators={"matmul": "cpu/torch"}) as pinned:
        assert pinned.supports(Request(MatmulSpec("f32", 8, 8))).provider == "torch"


@pytest.mark.parametrize(
    ("before", "environment", "spins"),
    [
        ("", {}, "1000"),
        ("", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("", {"OMP_WAIT_POLICY": "ACTIVE"}, "None"),
        ("import torch; ", {}, "None"),
    ],
)
def test_waiting_threads_soon_sleep_unless_someone_decided_otherwise(before, environment, spins):
    """Spinning threads made decode more than ten times slower on a busy machine."""
    program = f"{before}import os, opsocket; opsocket.open('cpu'); print(os.environ.get('GOMP_SPINCOUNT'))"
    variables = {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}
    kept = {name: value for name, value in os.environ.items() if name not in variables}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**kept, **environment}, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.strip() == spins, done.stderr
