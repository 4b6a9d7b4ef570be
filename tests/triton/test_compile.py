"""Ahead of time: what a binary shows is read right, what no chip should get is refused, and who compiles may die."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from opsocket_triton.arches import ARCHES, find_arch
from opsocket_triton.artifact import Accepted, Measured, dots_of, dots_without_unit, judged, occupancy, problems
from opsocket_triton.compile import compile_all, main, read_records, rows
from opsocket_triton.ladder import TritonLadder
from opsocket_triton.specialization import Specialization

SM_80, SM_90, GFX942, GFX1100 = (find_arch(name) for name in ("sm_80", "sm_90", "gfx942", "gfx1100"))
TENSORS = (("a", "*bf16"), ("b", "*bf16"), ("out", "*bf16"))
STRIDES = tuple((name, "i32") for name in ("a_row", "b_row", "out_row", "width"))
ADD = Specialization(
    "opsocket_triton.model.add:add_rows",
    (*TENSORS, *STRIDES, ("BLOCK", "constexpr")),
    (("BLOCK", 1024),),
    ("a", "b", "out"),
    4,
    2,
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "opsocket" / "compiled"


def controls(*wanted: tuple[str, str]) -> list[tuple[Specialization, str, str]]:
    """Launch, architecture and problem of the ladder's controls, by name and architecture."""
    found = []
    for name, arch in wanted:
        ladder = TritonLadder(find_arch(arch).backend, "a vendor's")
        (control,) = (each for each in ladder.wrong_launches(arch) if each.name == name)
        found.append((Specialization.loads(control.record), arch, control.problem))
    return found


def test_a_right_kernel_and_every_kind_of_wrong_one(cache: Path) -> None:
    wrong = controls(
        ("oversized tile", "gfx942"),
        ("missing matrix instruction", "sm_80"),
        ("missing matrix instruction", "gfx942"),
        ("an f32 product in tf32", "sm_90"),
        ("an f32 product in tf32", "gfx1100"),
        ("spilled registers", "sm_80"),
        ("a product that no unit takes", "gfx942"),
    )
    right = [(ADD, SM_90), (ADD, GFX942)]
    made = compile_all([*right, *((launch, find_arch(arch)) for launch, arch, _ in wrong)])
    for artifact in made[:2]:
        assert artifact.problems == artifact.accepted == ()
        assert artifact.measured.registers > 0
        assert artifact.occupancy == 1.0
    assert made[2].measured.matrix, "the oversized tile is multiplied by matrix units all the same"
    assert all(name.startswith("v_mfma_") for name in made[2].measured.matrix)
    for artifact, (launch, arch, problem) in zip(made[2:], wrong, strict=True):
        assert any(text.startswith(problem) for text in artifact.problems), (launch.kernel, arch, artifact.problems)

    again = compile_all(right)
    assert again == made[:2], "the cache holds what was measured, and how long that took"
    assert len(list(cache.glob("*.json"))) == 2 + len(wrong) - 1, "what the compiler refused is not kept"


def test_a_product_is_seen_in_the_binary_of_every_architecture() -> None:
    """The control's launch without its fault: a tile that fits."""
    ((launch, _, _),) = controls(("oversized tile", "sm_90"))
    small = dataclasses.replace(launch, constants=(("STEP", 32),), stages=2)
    made = compile_all([(small, find_arch(name)) for name in ("sm_80", "sm_90", "sm_100", "gfx942", "gfx1100")])
    assert [artifact.problems for artifact in made] == [()] * 5
    found = [artifact.measured.matrix[0].partition(".")[0] for artifact in made]
    assert [name.partition("_f32")[0] for name in found] == ["HMMA", "HGMMA", "UTCHMMA", "v_mfma", "v_wmma"]


def test_a_compiler_that_dies_is_a_problem_of_its_kernel_alone(tmp_path, monkeypatch) -> None:
    (tmp_path / "deadly.py").write_text("import os\nos.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    deadly = dataclasses.replace(ADD, kernel="deadly:kernel")
    absent = dataclasses.replace(ADD, kernel="opsocket_triton.nowhere:kernel")
    made = compile_all([(deadly, SM_90), (absent, SM_90), (ADD, SM_90)])
    assert made[0].problems[0].startswith("compiler: its process ended with exit code -6")
    assert made[1].problems[0].startswith("compiler: ModuleNotFoundError")
    assert made[2].problems == ()


def test_a_written_reason_beside_the_kernel_accepts_a_spill_of_so_many_bytes_and_nothing_else() -> None:
    wide = dataclasses.replace(ADD, kernel="module:wide", constants=(("D", 512),))
    reasons = Accepted("half the tile reads V twice", 12, {"D": 512}), Accepted("of any size", 4)
    accepting = {("wide", "gfx1100", kind): reasons for kind in ("spills", "shared memory")}
    spilled = Measured(registers=256, spills=3, local_bytes=12, shared_bytes=GFX1100.shared_bytes + 1)
    wrong, accepted = judged(GFX1100, wide, spilled, accepting)
    assert [text.partition(":")[0] for text in wrong] == ["shared memory"]
    assert accepted == ("spills: 3 to memory, 12 bytes of each lane (half the tile reads V twice)",)
    assert judged(GFX942, wide, spilled, accepting)[1] == ()
    assert judged(GFX1100, dataclasses.replace(wide, kernel="module:other"), spilled, accepting)[1] == ()
    more = dataclasses.replace(spilled, local_bytes=16, shared_bytes=0)
    narrow = dataclasses.replace(wide, constants=(("D", 64),))
    for launch, measured, most in ((wide, more, 12), (narrow, spilled, 4)):
        wrong, accepted = judged(GFX1100, launch, measured, accepting)
        assert accepted == ()
        assert f", and at most {most} are accepted" in wrong[-1] + wrong[0]


# ---- what is read, and what follows


def test_products_are_read_by_type_and_precision() -> None:
    source = """
    %d = tt.dot %x, %y, %z, inputPrecision = tf32 : tensor<64x32xbf16> * tensor<32x64xbf16> -> tensor<64x64xf32>
    %e = tt.dot %x, %y, %z, inputPrecision = tf32 : tensor<16x16xf32> * tensor<16x16xf32> -> tensor<16x16xf32>
    %f = tt.dot %x, %y, %z : tensor<16x16xf32> * tensor<16x16xf32> -> tensor<16x16xf32>
    %g = tt.dot %x, %y, %z : tensor<16x32xi8> * tensor<32x16xi8> -> tensor<16x16xi32>
    """
    assert dots_of(source) == ("bf16", "f32/tf32", "f32", "i8")
    assert dots_without_unit("%d = tt.dot %x, %y, %z : ... -> tensor<64x64xf32, #blocked1> loc(#loc)") == 1
    assert dots_without_unit("%d = tt.dot %x, %y, %z : ... -> tensor<64x64xf32, #mma> loc(#loc)") == 0


def kinds(**measured: object) -> list[str]:
    return list(problems(GFX942, Measured(registers=64, **measured)))


def test_what_is_refused() -> None:
    assert kinds() == []
    assert kinds(shared_bytes=64 * 1024) == []
    assert kinds(shared_bytes=64 * 1024 + 1) == ["shared memory"]
    assert kinds(spills=1) == kinds(local_bytes=4) == ["spills"]
    assert kinds(dots=("f32",)) == [], "f32 as such need not run on matrix units"
    assert kinds(dots=("f32/tf32",), matrix=("v_mfma_f32_32x32x4_xf32",)) == ["precision"]
    assert kinds(dots=("bf16",)) == kinds(dots=("i8", "f32")) == ["matrix units"]
    assert kinds(dots=("bf16", "bf16"), matrix=("v_mfma_f32_32x32x8_bf16",), dots_without_unit=1) == ["matrix units"]


def test_occupancy_is_limited_by_whatever_is_scarcest() -> None:
    def of(arch, warps=4, **measured):
        return round(occupancy(arch, Measured(**measured), warps), 3)

    assert of(SM_90, registers=32) == 1.0
    assert of(SM_90, registers=128) == 0.25  # 65536 / (128 * 32) = 16 of 64 warps
    assert of(SM_90, registers=32, shared_bytes=100 * 1024) == 0.125  # two programs of four warps
    assert of(GFX942, registers=128) == 0.5  # 4 of 8 waves on each SIMD
    assert of(GFX942, registers=64, shared_bytes=33 * 1024) == 0.125
    assert of(GFX1100, registers=96) == 1.0
    assert of(GFX1100, registers=256) == 0.312  # 5 of 16 waves


def test_the_command_prints_a_row_for_each_kernel_and_ends_with_one_on_a_problem(tmp_path, capsys) -> None:
    folder = tmp_path / "records"
    folder.mkdir()
    ((wide, _, _),) = controls(("missing matrix instruction", "gfx942"))
    (folder / "1.jsonl").write_text(ADD.dumps() + "\n" + ADD.dumps() + "\n")
    (folder / "2.jsonl").write_text(ADD.dumps() + "\n")
    assert read_records(folder) == [ADD]
    assert main([str(folder), "--arch", "gfx942"]) == 0
    assert "add_rows" in capsys.readouterr().out
    (folder / "2.jsonl").write_text(wide.dumps() + "\n")
    assert main([str(folder), "--arch", "gfx942", "--each"]) == 1
    assert "matrix units" in capsys.readouterr().out


def test_ranges_over_variants() -> None:
    (made,) = compile_all([(ADD, GFX942)])
    other = dataclasses.replace(made, measured=dataclasses.replace(made.measured, registers=99))
    ((name, arch, variants, registers, *_),) = rows([made, other])
    assert (name, arch, variants) == ("add_rows", "gfx942", "2")
    assert registers == f"{made.measured.registers}-99"


def test_every_architecture_has_controls_and_its_own_limits() -> None:
    for arch in ARCHES.values():
        names = {control.name for control in TritonLadder(arch.backend, "a vendor's").wrong_launches(arch.name)}
        assert {"oversized tile", "missing matrix instruction", "spilled registers"} <= names
