"""Values whose types the interpreter finds again have the types that Triton gives them."""

from __future__ import annotations

import torch

from opsocket.operators import DeviceInfo
from opsocket_triton import mode

mode.interpret(DeviceInfo("cuda", 0, "sm_90", "sm_90", 2**30, numerics="interpreted"))

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from opsocket_triton.launch import launch  # noqa: E402

N = 16


@triton.jit
def mix(a, b, count, quotient, spread, wrapped, N: tl.constexpr):
    at = tl.arange(0, N)
    x = tl.load(a + at)
    y = tl.load(b + at)
    # Of two f16 an f32, on a chip as here.
    tl.store(quotient + at, x / y)
    row = x.to(tl.float32)[:, None] + y.to(tl.float32)[None, :]
    tl.static_assert(row.shape[0] == N and row.shape[1] == N and row.dtype == tl.float32)
    tl.store(spread + at[:, None] * N + at[None, :], row)
    n = tl.load(count + at)
    tl.store(wrapped + at, n + n)


def test_division_widens_shapes_spread_and_integers_wrap() -> None:
    a = torch.full((N,), 60000.0, dtype=torch.float16)
    b = torch.linspace(0.01, 2, N).to(torch.float16)
    count = torch.full((N,), 2**31 - 1, dtype=torch.int32)
    quotient, spread = torch.empty(N), torch.empty(N, N)
    wrapped = torch.empty(N, dtype=torch.int32)
    for _ in range(2):  # what the second launch finds again gives what the first one made
        launch(mix, (1,), a=a, b=b, count=count, quotient=quotient, spread=spread, wrapped=wrapped, N=N)
        assert torch.equal(quotient, a.float() / b.float())
        assert torch.equal(spread, a.float()[:, None] + b.float()[None, :])
        assert wrapped.tolist() == [-2] * N
