"""How the kernels are verified where the chip is absent: interpreted, and compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final, Literal

from opsocket.operators import Artifact, Ladder, Plan, WrongKernel, WrongLaunch
from opsocket_triton import artifact as triton_artifact
from opsocket_triton.arches import Arch, arches_of, find_arch
from opsocket_triton.compile import compile_all
from opsocket_triton.mode import VARIABLE
from opsocket_triton.slips import SLIPS, plan_with
from opsocket_triton.specialization import Specialization

_CONTROLS: Final = "opsocket_triton.controls"
_WRONG_KERNELS: Final = (
    WrongKernel(
        "out-of-bounds load", "loads lanes that lie in no tensor it was given", "add", "bf16", "out-of-bounds load"
    ),
    WrongKernel("bf16 by truncation", "rounds f32 to bf16 towards zero", "add", "bf16", "rounding once"),
    WrongKernel("a product that no unit takes", "multiplies 4 x 16 by 16 x 16", "add", "bf16", "matrix units"),
    WrongKernel("an f32 product in tf32", "leaves the precision of an f32 product to the chip", "add", "f32", "tf32"),
)


class TritonLadder(Ladder):
    """vendor: what a person calls the chips, in "has never run on ... hardware"."""

    numerics: ClassVar[Literal["interpreted", "emulated"]] = "interpreted"
    artifact: ClassVar[Literal["compiled", "schema"]] = "compiled"

    def __init__(self, backend: Literal["cuda", "hip"], vendor: str) -> None:
        self.arches = tuple(arch.name for arch in arches_of(backend))
        self.limits = (
            f"Nothing of this has run on {vendor} hardware, and nothing is said of speed.",
            "Programs are interpreted in turn or in lockstep: no race, no memory order and no synchronization is seen.",
            "Sums and products are not fused there, and exp2, log2 and divisions are the host's, not the chip's.",
            "A product is summed as NumPy sums it, and rounds to nearest; matrix units may cut off, in other orders.",
            "Vendors' libraries, which serve first where they are installed, did not run: at most calls were bound.",
            "What was compiled was looked at and not run; occupancy is estimated from registers and on-chip memory.",
        )

    def environment(self, arch: str) -> Mapping[str, str]:
        return {VARIABLE: find_arch(arch).name}

    def record(self, rehearse: bool = False) -> None:
        from opsocket_triton.launch import take_down

        take_down(rehearse)

    def recorded(self) -> tuple[str, ...]:
        from opsocket_triton.launch import taken

        return tuple(made.dumps() for made in taken())

    def trace(self) -> str:
        from opsocket_triton.launch import trace

        return trace()

    def kernel_of(self, record: str) -> str:
        return Specialization.loads(record).kernel

    def make(
        self, wanted: Sequence[tuple[str, str]], jobs: int, on_artifact: Callable[[Artifact], None]
    ) -> Sequence[Artifact]:
        pairs = [(Specialization.loads(record), find_arch(arch)) for record, arch in wanted]
        made = compile_all(pairs, jobs=jobs, on_artifact=lambda each: on_artifact(_neutral(each)))
        return [_neutral(each) for each in made]

    def wrong_kernels(self, arch: str) -> Sequence[WrongKernel]:
        return (*_WRONG_KERNELS, *(slip.control for slip in SLIPS))

    def wrong_plan(self, name: str) -> type[Plan]:
        if slip := next((slip for slip in SLIPS if slip.control.name == name), None):
            return plan_with(slip)
        from opsocket_triton.controls import WRONG_PLANS

        return WRONG_PLANS[name]

    def wrong_launches(self, arch: str) -> Sequence[WrongLaunch]:
        return [_control(find_arch(arch), *control) for control in _wrong_launches(find_arch(arch))]


def _neutral(made: triton_artifact.Artifact) -> Artifact:
    measured = made.measured
    facts = {
        "registers": measured.registers,
        "spills": measured.spills,
        "local bytes": measured.local_bytes,
        "shared bytes": measured.shared_bytes,
        "shared limit": made.shared_limit,
        "occupancy": made.occupancy,
        "matrix": measured.matrix,
    }
    kernel = made.kernel.removeprefix("opsocket_triton.")
    return Artifact(kernel, made.variant, made.arch, facts, made.problems, made.accepted, made.seconds)


_BF16: Final = (("a", "*bf16"), ("b", "*bf16"), ("out", "*fp32"))
_F32: Final = (("a", "*fp32"), ("b", "*fp32"), ("out", "*fp32"))
_Wrong = tuple[str, str, str, Specialization]


def _wrong_launches(arch: Arch) -> list[_Wrong]:
    """name, what is wrong, how the refusal begins, the launch; those that this architecture can be asked."""
    is_cdna = arch.backend == "hip" and arch.warp == 64
    step = 256 if arch.backend == "hip" else 512
    found = [
        (
            "oversized tile",
            "tiles that on-chip memory has no room for",
            "shared memory",
            _launch("oversized", _BF16, (("depth", "i32"),), {"STEP": step}, stages=3),
        ),
        (
            "missing matrix instruction",
            "a product in the source and none in the binary",
            "matrix units",
            _launch("without_instruction", _BF16),
        ),
        (
            "an f32 product in tf32",
            "factors that are rounded to tf32",
            "precision" if arch.backend == "cuda" or arch.name == "gfx942" else "compiler",
            _launch("in_tf32", _F32),
        ),
        (
            "spilled registers",
            "more values than registers",
            "spills",
            _launch("crowded", (("x", "*fp32"), ("out", "*fp32")), (), {"N": 32768 if is_cdna else 8192}, warps=1),
        ),
    ]
    if is_cdna:
        launch = _launch("on_lanes", _BF16)
        found.append(("a product that no unit takes", "4 x 16 by 16 x 16", "matrix units", launch))
    return found


def _control(arch: Arch, name: str, wrong: str, problem: str, launch: Specialization) -> WrongLaunch:
    return WrongLaunch(name, wrong, arch.name, launch.dumps(), problem)


def _launch(
    function: str,
    tensors: tuple[tuple[str, str], ...],
    numbers: tuple[tuple[str, str], ...] = (),
    constants: Mapping[str, int] | None = None,
    *,
    warps: int = 4,
    stages: int = 2,
) -> Specialization:
    constants = constants or {}
    names = tuple(name for name, _ in (*tensors, *numbers))
    signature = (*tensors, *numbers, *((name, "constexpr") for name in constants))
    near = tuple(name for name, _ in tensors)
    return Specialization(f"{_CONTROLS}:{function}", signature, tuple(constants.items()), names, warps, stages, near)
