"""Triton kernels lowered to HIVM: what is read of a module, what is refused; where the compilers are, the kernels."""

from __future__ import annotations

import json

import pytest

from opsocket_ascend.hivm import lower
from opsocket_ascend.hivm.module import facts
from opsocket_ascend.verification.ladder import AscendLadder
from opsocket_triton.specialization import Specialization

MODULE = """
module attributes {dlti.target_system_spec = #dlti.target_system_spec<"NPU" : #hacc.target_device_spec<
  #dlti.dl_entry<"UB_SIZE", 1572864 : i32>, #dlti.dl_entry<"L1_SIZE", 4194304 : i32>,
  #dlti.dl_entry<"L0C_SIZE", 1048576 : i32>>>} {
  func.func private @load_gm_to_ubuf_1d_float(memref<?xf32, #hivm.address_space<gm>>)
  func.func @kernel() {
    %c0_i64 = arith.constant 0 : i64
    %c4096_i64 = arith.constant 4096 : i64
    %c196000_i64 = arith.constant 196000 : i64
    %0 = hivm.hir.pointer_cast(%c0_i64, %c4096_i64) : memref<1024xf32, #hivm.address_space<ub>>
    %1 = hivm.hir.pointer_cast(%c196000_i64) : memref<8x16xbf16, strided<[16, 1]>, #hivm.address_space<ub>>
    %2 = hivm.hir.pointer_cast(%c4096_i64) : memref<4x4x16x16xi32, #hivm.address_space<cc>>
    %3 = memref.load %arg0[%c0] {markD = 0 : i32} : memref<1xi64, strided<[1]>, #hivm.address_space<gm>>
    %4 = memref.load %0[%c0] : memref<1024xf32, #hivm.address_space<ub>>
    func.call @load_gm_to_ubuf_1d_float(%arg0) : (memref<?xf32, #hivm.address_space<gm>>) -> ()
    func.call @mma_tile_half_to_float(%a) : (memref<?xf16>) -> ()
"""


def test_a_module_says_how_far_its_plan_of_the_chip_s_memory_goes():
    found = facts(MODULE, "mix", True, "")
    assert found == {
        "core": "mix",
        "UB bytes": 196000 + 8 * 16 * 2,
        "UB limit": 192 * 1024,
        "L0C bytes": 4096 + 4 * 4 * 16 * 16 * 4,
        "L0C limit": 128 * 1024,
        "copies": 1,
        "by element": 1,
        "matrix": 1,
        "buffers": "double",
    }
    assert lower.judged(found) == ()


def test_memory_that_the_chip_has_not_and_a_product_without_a_matrix_unit_are_problems():
    text = MODULE.replace("%c196000_i64 = arith.constant 196000", "%c196000_i64 = arith.constant 196608")
    found = facts(text.replace("@mma_tile", "@vmul"), "mix", True, "")
    memory, matrix = lower.judged(found)
    assert memory == "on-chip memory: 196864 bytes of UB, which has 196608"
    assert matrix.startswith("matrix units: ")


def test_without_the_compilers_nothing_is_made_of_a_kernel_and_the_report_says_so(monkeypatch):
    monkeypatch.setenv(lower.VARIABLE, "/nowhere/python")
    ladder, record = AscendLadder(), kernel("add", BLOCK=64).dumps()
    assert not ladder.makes(record)
    assert any("not lowered to HIVM here: make ascend-triton" in text for text in ladder.limits)
    with pytest.raises(RuntimeError, match="make ascend-triton"):
        lower.lower_all([record], "Ascend910B3")


def kernel(name, **constants) -> Specialization:
    """A launch with constants alone: what it is called is what matters."""
    signature = tuple((each, "constexpr") for each in constants)
    return Specialization(f"opsocket_ascend.hivm.controls:{name}", signature, tuple(constants.items()), (), 4, 2)


def merge(heads=16, wide=64, dim=64, kind="*fp16") -> str:
    tensors = (("outs", kind), ("lses", "*fp32"), ("out", kind), ("lse", "*fp32"))
    numbers = ("parts", "rows", "heads", "part_stride", "row_stride", "lse_part", "lse_row", "out_row")
    constants = {"DIM": dim, "HEADS": heads, "WIDE": wide}
    signature = (*tensors, *((name, "i32") for name in numbers), *((name, "constexpr") for name in constants))
    where = "opsocket_ascend.triton_provider.merge_kernel:merge_heads"
    return Specialization(where, signature, tuple(constants.items()), (), 4, 2).dumps()


@pytest.mark.skipif(lower.python() is None, reason=f"no compilers for Ascend here: {lower.HOW}")
class TestTheCompilers:
    def test_lower_a_kernel_within_the_chip_s_memory_and_refuse_it_beyond(self):
        right, wide = lower.lower_all([merge(), merge(heads=64, wide=1024, dim=1024)], "Ascend910B3")
        assert right.problems == ()
        assert right.facts["core"] == "aiv"
        assert 0 < right.facts["UB bytes"] <= right.facts["UB limit"] == 192 * 1024
        (problem,) = wide.problems
        assert problem.startswith("bishengir-compile: ub overflow")

    def test_a_launch_that_ends_them_is_its_own_problem_alone(self):
        lost = json.loads(merge())
        lost["kernel"] = "opsocket_ascend.triton_provider.merge_kernel:no_such_kernel"
        wrong, right = lower.lower_all([json.dumps(lost), merge()], "Ascend910B3")
        assert wrong.problems[0].startswith("lowering: AttributeError")
        assert right.problems == ()

    def test_refuse_every_control(self):
        wrong = [each for each in AscendLadder().wrong_launches("Ascend910B3") if '"signature"' in each.record]
        made = lower.lower_all([each.record for each in wrong], "Ascend910B3")
        assert len(made) == 4
        for each, artifact in zip(wrong, made, strict=True):
            assert any(text.startswith(each.problem) for text in artifact.problems), artifact
