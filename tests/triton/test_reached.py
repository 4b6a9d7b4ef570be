"""Tensors that a kernel finds by addresses in memory: only those that its launch names."""

from __future__ import annotations

import pytest
import torch

from opsocket.operators import DeviceInfo
from opsocket_triton import mode

mode.interpret(DeviceInfo("cuda", 0, "sm_90", "sm_90", 2**30, numerics="interpreted"))

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from opsocket_triton.launch import launch  # noqa: E402


@triton.jit
def double_at(table, like, out, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    values = tl.load(tl.load(table + tl.program_id(0)).to(like.dtype) + lanes)
    tl.store(out + tl.program_id(0) * BLOCK + lanes, values * 2)


def test_addresses_lead_to_the_tensors_named():
    parts = [torch.arange(16.0) + 100 * i for i in range(3)]
    table = torch.tensor([part.data_ptr() for part in parts])
    out = torch.zeros(48)
    launch(double_at, (3,), table=table, like=parts[0], out=out, BLOCK=16, reached=parts)
    assert torch.equal(out, torch.cat(parts) * 2)


def test_an_address_of_a_tensor_not_named_is_out_of_bounds():
    parts = [torch.arange(16.0) + 100 * i for i in range(3)]
    table = torch.tensor([part.data_ptr() for part in parts])
    with pytest.raises(Exception, match="out-of-bounds"):
        launch(double_at, (3,), table=table, like=parts[0], out=torch.zeros(48), BLOCK=16, reached=parts[:2])
    with pytest.raises(Exception, match="out-of-bounds"):
        launch(double_at, (3,), table=table, like=parts[0], out=torch.zeros(48), BLOCK=16)
