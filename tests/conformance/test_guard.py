"""Who answers in a kernel's place is found out: the oracle, core's reference, another backend, the host."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from opsocket.operators import Request, SiluMulSpec
from opsocket.quantization import get_format
from opsocket_conformance.operators.add import add
from opsocket_conformance.verdicts import Verdict
from opsocket_conformance.watch import watching

MATMUL, SILU = "matmul[w=q8_0]#0", "silu_mul[]#0"


def test_core_s_reference(judge):
    weight = {"weight": np.zeros((2, 4), np.float32)}

    def ask(args, kwargs):
        get_format("f32").reference(weight, 2, 4)
        return args, kwargs

    result = judge(MATMUL, "matmul", args=ask)
    assert result.verdict is Verdict.CRASH
    assert "QuantFormat.reference" in result.messages[-1]
    assert judge(MATMUL).verdict is Verdict.PASS


def test_the_oracle(judge):
    result = judge(SILU, "silu_mul", args=lambda args, kwargs: add(np.zeros(1), np.zeros(1)))
    assert "called the oracle's add" in result.messages[-1]


def test_another_backend(judge, session):
    class Other(type(session.backend)):
        info = replace(session.backend.info, name="other")

    theirs = Other().open(session.device, session.options).plan(Request(SiluMulSpec(536, "bf16")))

    def hand_over(args, kwargs):
        theirs.run(*args)
        return args, kwargs

    result = judge(SILU, "silu_mul", args=hand_over)
    assert result.verdict is Verdict.CRASH
    assert "called silu_mul of backend 'other'" in result.messages[-1]


def test_work_off_the_device_is_seen():
    on_device, on_host = torch.empty(3, device="meta"), torch.ones(3)
    with watching(on_device) as seen:
        on_device + on_device
        on_device * torch.tensor(2.0)
    assert seen == []
    with watching(on_device) as seen:
        on_host + on_host
        on_host.to("meta")
    assert any("aten.add on cpu" in what for what in seen)
    with watching(on_host) as seen:
        on_host + on_host
    assert seen == []


def test_a_read_by_the_host_is_seen():
    with watching(torch.empty(3, device="meta")) as seen, pytest.raises((RuntimeError, NotImplementedError)):
        torch.empty(1, device="meta").item()
    assert any("waits for it" in what for what in seen)


@pytest.mark.parametrize(
    "case",
    [
        "silu_mul[strided=1]#0",
        "rms_norm[strided=1]#0",
        "rope[strided=1]#0",
        "matmul[strided=1]#0",
        "take_rows[strided=1]#0",
        "moe_combine[strided=1]#0",
        "attention[strided=1]#0",
    ],
)
def test_a_strided_output_written_as_if_it_were_dense(judge, case):
    def write_densely(plan, result, args):
        out = result[0] if isinstance(result, tuple) else result
        strides = torch.empty(out.shape).stride()
        out.as_strided(out.shape, strides, out.storage_offset()).copy_(out.clone())
        return result

    assert judge(case).verdict is Verdict.PASS
    found = judge(case, case.partition("[")[0], result=write_densely)
    assert found.verdict is Verdict.FAIL
    assert any("the output were written to" in message for message in found.messages)
