"""Weights in FRACTAL_NZ: cast by the unmodified torch_npu, tiled in device memory, read by the products alone."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from opsocket.operators import ContractError, MatmulSpec, Numerics, Request
from opsocket_ascend.emulator import calls, handles
from opsocket_ascend.emulator.handles import to_bf16
from opsocket_ascend.emulator.tiles import from_tiles, tiled_shape, to_tiles
from opsocket_ascend.torch_npu_provider import strict, tiles
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict

W8A8 = "matmul[m=5,n=136,k=80,w=i8_channel_a8,dtype=f16]#0"
BF16 = "matmul[m=3,n=136,k=80,w=bf16,dtype=bf16,acc=f32_truncating]#0"
BIASED = "matmul[m=3,n=136,k=80,w=bf16,dtype=bf16,bias=1,acc=f32_truncating]#0"
EXPERTS = "grouped_matmul[experts=5,m=23,n=40,k=80,w=f16,dtype=f16,acc=f32_truncating]#0"
PRODUCTS = {
    W8A8: "aclnnQuantMatmulWeightNz",
    BF16: "aclnnMatmulWeightNz",
    BIASED: "aclnnGroupedMatmulWeightNz",
    EXPERTS: "aclnnGroupedMatmulWeightNz",
}
FAST = Numerics(accumulate="f32_truncating")


@pytest.fixture(scope="module", autouse=True)
def opened(session):
    return session


def counted(dtype, *shape):
    return torch.arange(np.prod(shape)).remainder(127).reshape(shape).to(dtype)


def test_an_element_lies_where_the_format_says():
    values = np.arange(40 * 35).reshape(40, 35)
    storage = to_tiles(values, 16)
    assert storage.shape == tiled_shape(values.shape, 16) == (3, 3, 16, 16)
    assert storage[34 // 16, 39 // 16, 39 % 16, 34 % 16] == values[39, 34]
    assert storage[2, :, :, 3:].max() == storage[:, 2, 8:].max() == 0  # beyond the last column, and the last row
    assert np.array_equal(from_tiles(storage, values.shape), values)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float16, torch.bfloat16, torch.int32, torch.float32])
@pytest.mark.parametrize("shape", [(64, 32), (35, 70), (3, 17, 40)])
def test_a_cast_and_back_changes_nothing(dtype, shape):
    plain = counted(dtype, *shape)
    cast = tiles.tiled(plain.npu())
    assert tiles.is_tiled(cast)
    assert tiles.storage_bytes(cast) % 512 == 0
    assert not tiles.is_tiled(tiles.plain(cast))
    assert torch.equal(tiles.plain(cast).cpu(), plain)
    assert torch.equal(cast.cpu(), plain)  # torch_npu casts back on the way


def test_private_formats_are_left_as_forbidden_as_they_were():
    tiles.tiled(counted(torch.int8, 64, 32).npu())
    import torch_npu

    assert not tiles.is_tiled(torch_npu.npu_format_cast(counted(torch.int8, 64, 32).npu(), tiles.FRACTAL_NZ))


@pytest.mark.parametrize(("cann", "operator"), [("8.5.0", "Identity"), ("9.1.0", "aclnnNpuFormatCast")])
def test_either_interface_of_cann_casts_the_same(cann, operator):
    program = (
        "import numpy as np, opsocket\n"
        "from opsocket_ascend.emulator import calls\n"
        "from opsocket_ascend.torch_npu_provider import tiles\n"
        "with opsocket.open('ascend:0') as s:\n"
        "    calls.observe(lambda operator, given: print(calls.written(operator, given)))\n"
        "    w = np.arange(70 * 48, dtype=np.int8).reshape(70, 48)\n"
        "    print(np.array_equal(s.download(tiles.plain(tiles.tiled(s.upload(w)))), w))\n"
    )
    environment = os.environ | {"OPSOCKET_EMULATE_CANN": cann}
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-3:] == [
        f"{operator}(source=i8[70,48], out=i8[70,48]@29[2,5,16,32])",
        f"{operator}(source=i8[70,48]@29[2,5,16,32], out=i8[70,48])",
        "True",
    ]


@pytest.mark.parametrize("case", PRODUCTS)
def test_a_weight_in_tiles_is_multiplied(session, case):
    seen = []
    end = calls.observe(lambda operator, given: seen.append(operator))
    try:
        assert run_case(parse_case(case, CHECKS), session, 0, 120.0).verdict is Verdict.PASS
    finally:
        end()
    assert {"Identity", PRODUCTS[case]} <= set(seen)


@pytest.mark.parametrize("case", PRODUCTS)
@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda storage: np.roll(storage, 1, -4), id="columns of tiles turned"),
        pytest.param(lambda storage: storage.swapaxes(-1, -2).reshape(storage.shape), id="each tile transposed"),
        pytest.param(lambda storage: np.sort(storage.reshape(-1)).reshape(storage.shape), id="sorted"),
    ],
)
def test_a_weight_that_is_wrongly_tiled_is_caught_by_the_suite(session, monkeypatch, case, wrong):
    """The numbers have to come out of the tiles: nothing else of the weight is left."""
    monkeypatch.setattr(handles, "to_tiles", lambda values, c0: wrong(to_tiles(values, c0)))
    assert run_case(parse_case(case, CHECKS), session, 0, 120.0).verdict is Verdict.FAIL


def test_tiles_are_not_read_by_what_does_not_know_them(capfd):
    cast, halves = tiles.tiled(counted(torch.int8, 64, 32).npu()), counted(torch.float16, 3, 64).npu()
    with pytest.raises(RuntimeError, match="aclnnWeightQuantBatchMatmulV2"):
        torch.ops.npu.npu_weight_quant_batchmatmul(halves, cast, halves.new_ones(32))
    assert "private format 29" in capfd.readouterr().err
    with pytest.raises(RuntimeError, match="GatherV2: no answer to this operator"):
        cast.index_select(0, torch.tensor([3]).npu())


def test_a_slice_of_tiles_is_refused(capfd):
    cast = tiles.tiled(counted(torch.float16, 64, 32).npu())
    with pytest.raises(RuntimeError, match="aclnnMatmulWeightNz"):
        counted(torch.float16, 3, 32).npu() @ cast[16:48].t()
    assert "a view of tiles" in capfd.readouterr().err


def test_what_a_16_bit_weight_in_tiles_takes_and_holds(session):
    request = Request(MatmulSpec("bf16", 40, 80, "bf16", "bf16", numerics=FAST))
    w = np.random.default_rng(0).integers(-99, 99, (40, 80))
    packed = session.prepare_weight(request, {"weight": to_bf16(w)})
    assert packed.layout == "tiles"
    assert packed.nbytes == 48 * 80 * 2
    plan = session.plan(request)
    assert plan.provider == "torch_npu"
    assert np.array_equal(session.download(type(plan).dequantize(session, packed)), w)


@pytest.mark.parametrize(("n", "k"), [(1, 64), (64, 1)])
def test_a_single_row_or_column_stays_as_it_is(session, n, k):
    request = Request(MatmulSpec("bf16", n, k, "bf16", "bf16", numerics=FAST))
    packed = session.prepare_weight(request, {"weight": to_bf16(np.ones((n, k)))})
    assert packed.layout == "dense"
    y = session.plan(request).run(session.upload(np.ones((3, k), np.float32), "bf16"), packed)
    assert (session.download(y) == k).all()


@pytest.mark.parametrize(("arch", "reads"), [("Ascend910B3", True), ("Ascend910_9391", True), ("Ascend310P3", False)])
def test_which_chip_reads_tiles_is_data(arch, reads):
    session = SimpleNamespace(device=SimpleNamespace(arch=arch))
    for operator in ("matmul", "npu_quant_matmul", "npu_grouped_matmul"):
        assert tiles.are_read(operator, session, 64, 64) == reads
    assert not tiles.are_read("npu_weight_quant_batchmatmul", session, 64, 64)


def test_what_tiles_forbid_is_refused():
    tiled = {dtype: tiles.tiled(counted(dtype, 64, 32).npu()) for dtype in (torch.int8, torch.float16)}
    codes, halves = counted(torch.int8, 3, 64).npu(), counted(torch.float16, 3, 64).npu()
    scale, rows = torch.ones(32).npu(), torch.ones(3).npu()
    transposed = tiles.tiled(counted(torch.int8, 32, 64).npu()).t()
    ends = torch.tensor([3]).npu()

    def grouped(x, *weights):
        return strict.grouped_matmul(x, weights, torch.tensor([1, 3][-len(weights) :]).npu(), torch.float16)

    for argument, call in (
        ("weight", lambda: strict.quant_matmul(codes, transposed, scale, rows, None, torch.float16)),
        ("weight", lambda: strict.weight_quant_matmul(halves, tiled[torch.int8], scale.half(), None, 0)),
        (r"weights\[1\]", lambda: grouped(halves, tiled[torch.float16], counted(torch.float16, 64, 32).npu())),
        (r"weights\[1\]", lambda: grouped(halves, counted(torch.float16, 64, 32).npu(), tiled[torch.float16])),
        (r"weights\[0\]", lambda: grouped(halves, tiles.tiled(counted(torch.float16, 32, 64).npu()).t())),
        (r"weights\[0\]", lambda: strict.grouped_matmul(codes, [tiled[torch.int8]], ends, torch.float16)),
        ("weight", lambda: strict.tiled_matmul(halves, counted(torch.float16, 64, 32).npu())),
        ("weight", lambda: strict.tiled_matmul(halves, tiled[torch.int8])),
        ("weight", lambda: strict.tiled_matmul(halves[:, :48], tiled[torch.float16])),
        ("x", lambda: strict.tiled_matmul(halves.float(), tiled[torch.float16])),
    ):
        with pytest.raises(ContractError, match=f"^{argument}: "):
            call()
