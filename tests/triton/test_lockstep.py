"""Programs that the interpreter carries out together compute what each would alone."""

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
def sum_runs(x, lengths, out, counter, BLOCK: tl.constexpr):
    """Writes before it branches: 1 is added to `out` and `counter`, then, of odd programs alone, the sum of a run."""
    program = tl.program_id(0)
    tl.store(out + program, tl.load(out + program) + 1.0)
    tl.atomic_add(counter, 1.0)
    total = 0.0
    if program % 2 == 1:
        for start in range(0, tl.load(lengths + program), BLOCK):
            lanes = start + tl.arange(0, BLOCK)
            total += tl.sum(tl.load(x + lanes, mask=lanes < tl.load(lengths + program), other=0.0), 0)
    tl.store(out + program, tl.load(out + program) + total)


def test_programs_that_part_ways_write_once():
    lengths = (torch.arange(40) * 7) % 90
    x, out, counter = torch.arange(100.0), torch.zeros(40), torch.zeros(1)
    launch(sum_runs, (40,), x=x, lengths=lengths, out=out, counter=counter, BLOCK=16)
    want = [1.0 + (float(x[:n].sum()) if i % 2 else 0.0) for i, n in enumerate(lengths.tolist())]
    assert out.tolist() == want
    assert counter.item() == 40


@triton.jit
def take_numbers(order, counter):
    tl.store(order + tl.atomic_add(counter, 1), tl.program_id(0) + 100 * tl.program_id(1))


def test_atomic_operations_of_equal_programs_all_take_place():
    order, counter = torch.full((15,), -1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    launch(take_numbers, (5, 3), order=order, counter=counter)
    assert order.tolist() == [i + 100 * j for j in range(3) for i in range(5)]  # as chips count: the first axis first


@triton.jit
def row_of_each(x, out, width, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    at = tl.program_id(0) * width + lanes
    tl.store(out + at, tl.load(x + at, mask=lanes < width), mask=lanes < width)


def test_one_of_many_out_of_bounds_is_an_error():
    with pytest.raises(Exception, match="out-of-bounds load: 1 of"):
        launch(row_of_each, (20,), x=torch.zeros(99), out=torch.zeros(100), width=5, BLOCK=8)


@triton.jit
def unmasked_value(x, out, width, BLOCK: tl.constexpr):
    lanes = tl.arange(0, BLOCK)
    value = tl.load(x + tl.program_id(0) * width + lanes, mask=lanes < width)
    tl.store(out + tl.program_id(0), tl.sum(value, 0))


def test_a_lane_that_a_mask_leaves_out_is_poison_for_each():
    out = torch.zeros(12)
    launch(unmasked_value, (12,), x=torch.ones(60), out=out, width=5, BLOCK=8)
    assert out.isnan().all()


@triton.jit
def larger(a, b):
    return tl.where(a > b, a, b)


@triton.jit
def reshaped(x, y, sums, places, most, runs, flat, product, shuffled, own, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    program = tl.program_id(0)
    r, c = tl.arange(0, ROWS), tl.arange(0, COLUMNS)
    block = program * ROWS * COLUMNS + r[:, None] * COLUMNS + c[None, :]
    values = tl.load(x + block)
    shared = tl.load(y + c[:, None] * ROWS + r[None, :])
    tl.store(sums + program * COLUMNS + c, tl.sum(values, 0))
    tl.store(most + program * ROWS + r, tl.max(values, 1))
    tl.store(places + program * ROWS + r, tl.argmax(values, 1))
    tl.store(runs + block, tl.cumsum(values, 1))
    tl.store(flat + program, tl.sum(values))
    tl.store(
        product + program * ROWS * ROWS + r[:, None] * ROWS + r[None, :], tl.dot(values, shared, input_precision="ieee")
    )
    halves = tl.split(tl.reshape(tl.trans(values), (COLUMNS, ROWS // 2, 2)))
    back = tl.reshape(tl.join(halves[1], halves[0]), (COLUMNS, ROWS))
    tl.store(shuffled + program * ROWS * COLUMNS + c[:, None] * ROWS + r[None, :], back)
    tl.store(own + program * COLUMNS + c, tl.reduce(values, 0, larger))


def test_shapes_axes_and_products():
    programs, rows, columns = 11, 16, 32
    x = torch.randn(programs, rows, columns, generator=torch.Generator().manual_seed(0))
    y = torch.randn(columns, rows, generator=torch.Generator().manual_seed(1))
    out = {
        "sums": torch.zeros(programs, columns),
        "places": torch.zeros(programs, rows, dtype=torch.int32),
        "most": torch.zeros(programs, rows),
        "runs": torch.zeros_like(x),
        "flat": torch.zeros(programs),
        "product": torch.zeros(programs, rows, rows),
        "shuffled": torch.zeros(programs, columns, rows),
        "own": torch.zeros(programs, columns),
    }
    launch(reshaped, (programs,), x=x, y=y, **out, ROWS=rows, COLUMNS=columns)
    pairs = x.transpose(1, 2).reshape(programs, columns, rows // 2, 2).flip(-1)
    want = {
        "sums": x.sum(1),
        "places": x.argmax(2).int(),
        "most": x.amax(2),
        "runs": x.cumsum(2),
        "flat": x.sum((1, 2)),
        "product": x @ y,
        "shuffled": pairs.reshape(programs, columns, rows),
        "own": x.amax(1),
    }
    for name, value in want.items():
        torch.testing.assert_close(
            out[name], value, rtol=1e-5, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}"
        )
