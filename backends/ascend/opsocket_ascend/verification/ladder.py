"""How this backend is verified where there is no NPU: numbers on an emulated one, calls by the vendor's own checks."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal

from opsocket.operators import Artifact, Ladder, Plan, WrongKernel, WrongLaunch
from opsocket_ascend.hivm.lower import HOW, is_target, lower_all, python
from opsocket_ascend.mode import VARIABLE
from opsocket_ascend.socs import FAMILIES, SOCS, find_soc
from opsocket_ascend.triton_provider.slips import SLIPS
from opsocket_ascend.triton_provider.targets import VECTOR_CORES
from opsocket_ascend.verification.process import Checker, facts_of
from opsocket_triton.slips import plan_with
from opsocket_triton.specialization import Specialization

if TYPE_CHECKING:
    from opsocket_ascend.verification.recorder import Recorder

_WRONG_KERNELS: Final = tuple(
    WrongKernel(name, wrong, "add", "f16", finding)
    for name, wrong, finding in (
        ("host read of device memory", "reads by the address that a tensor has", "SIGSEGV"),
        ("work on the host", "adds on the host, and brings the sum back", "off the session's device"),
        ("an index outside of an array", "reads a row past the last", "aclnnIndexSelect"),
        ("an operator without an answer", "asks for an inverse error function on the way", "aclnnErfinv"),
        ("low bits lost", "makes the sum 2^-9 smaller before it is rounded", "rounding once"),
    )
)
_WRONG_GRAPHS: Final = (
    WrongKernel(
        "waiting in a capture", "the host reads the sum", "add", "bf16",
        "waits for a stream that is captured", "capture[call=add,dtype=bf16]#0",
    ),
    WrongKernel(
        "lengths as captured", "a graph keeps the lengths of attention", "attention", "bf16",
        "out[", "capture_fast[hq=14,hkv=2,d=64,q=bf16]#0",
    ),
)  # fmt: skip
_WRONG_CALLS: Final = (
    ("an argument that the schema has not", "npu_dynamic_quant with smooth=None", "schema"),
    ("an argument of another type", "npu_dynamic_quant with a number for a mode", "schema"),
    ("an operator that torch_npu has not", "npu_dynamic_quant_of_ours", "schema"),
    ("K that differs, for the int8 product", "64 and 48: the C++ does not look", "Meta function"),
    ("results of another shape", "a scale for each column is said to have come", "Meta function"),
    ("columns that no word of int4 codes takes", "33: there is no Meta function", "torch_npu"),
    ("another call of CANN", "65 columns are said to have been asked for", "aclnn"),
)
_CHECK: Final = (sys.executable, "-W", "ignore", "-m", "opsocket_ascend.verification.check")
_VECTOR: Final = (("x", "*bf16"), ("out", "*fp32"))
_MATRIX: Final = (("a", "*bf16"), ("b", "*bf16"), ("out", "*fp32"))
_WRONG_LAUNCHES: Final = (
    (
        "a tile that no vector core holds",
        "512 KiB of f32 at once, of 192",
        "bishengir-compile: ub overflow",
        ("oversized_vector", _VECTOR, {"N": 131072}),
    ),
    (
        "sums that no matrix unit holds",
        "256 x 512 of f32, of 128 KiB",
        "bishengir-compile: cc overflow",
        ("oversized_product", _MATRIX, {"ROWS": 256, "COLUMNS": 512, "DEPTH": 64}),
    ),
    (
        "factors that no matrix core holds",
        "64 x 8192 twice of bf16, of 512 KiB",
        "bishengir-compile: cbuf overflow",
        ("oversized_product", _MATRIX, {"ROWS": 64, "COLUMNS": 64, "DEPTH": 8192}),
    ),
    (
        "the language of a later Triton",
        "three alternatives without parentheses",
        "triton: UnsupportedLanguageConstruct",
        ("later_language", (("x", "*bf16"), ("out", "*bf16")), {"N": 16}),
    ),
)
"""name, what is wrong, how the refusal begins, the kernel of `hivm.controls` with its tensors and constants."""


class AscendLadder(Ladder):
    """artifact "schema": every call of a run that asked something of CANN, held against torch_npu's schema, its shape
    functions and its C++ once more, in a process of its own. "compiled": every launch of a Triton kernel, lowered to
    HIVM for the chip, where an environment with the compilers is there."""

    numerics: ClassVar[Literal["interpreted", "emulated"]] = "emulated"
    artifact: ClassVar[Literal["compiled", "schema"]] = "schema"
    arches = tuple(soc.name for soc in SOCS)
    usual = FAMILIES
    _LIMITS: ClassVar = (
        "Never run on an NPU, and nothing is said of speed.",
        "Numbers are those of float64 answers written from CANN's documentation: they show that calls mean what we "
        "think, and nothing of what CANN's kernels compute, round, or do with ties and overflow.",
        "CANN's own checks of tilings, formats and attributes did not run: what torch_npu takes, CANN may refuse.",
        "What a kernel reads past an array's end is not seen, nor where a stream fails to wait for another, except "
        "between a graph's updates and its replays: everything runs at once.",
        "Triton kernels are interpreted, one program after the other, on Triton 3.9 and the host's arithmetic: no race "
        "between cores, no order of copies, and no rounding of a vector core is seen.",
    )

    def __init__(self) -> None:
        self._recorder: Recorder | None = None
        lowered = (
            "They are compiled to HIVM: what CANN's hivmc makes of that is not known."
            if python()
            else f"They were not lowered to HIVM here: {HOW}."
        )
        self.limits = (*self._LIMITS, lowered)

    def environment(self, arch: str) -> Mapping[str, str]:
        return {VARIABLE: arch, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}

    def record(self, rehearse: bool = False) -> None:
        from opsocket_ascend.emulator.calls import leave_unanswered
        from opsocket_ascend.verification.recorder import Recorder, is_emulating
        from opsocket_triton.launch import take_down

        if not is_emulating():
            return
        if rehearse:
            leave_unanswered()
        take_down(rehearse)
        self._recorder = Recorder()
        self._recorder.__enter__()

    def recorded(self) -> tuple[str, ...]:
        if self._recorder is None:
            return ()
        from opsocket_triton import launch

        return (*self._recorder.take(), *(made.dumps() for made in launch.taken()))

    def trace(self) -> str:
        if self._recorder is None:
            return ""
        from opsocket_triton import launch

        return f"{self._recorder.take_trace()} {launch.trace()}"

    def kernel_of(self, record: str) -> str:
        content = json.loads(record)
        name: str = content["kernel"] if is_kernel(record) else content["operator"]
        return name

    def kind_of(self, record: str) -> Literal["compiled", "schema"]:
        return "compiled" if is_kernel(record) else "schema"

    def makes(self, record: str) -> bool:
        return not is_kernel(record) or python() is not None

    def make(
        self, wanted: Sequence[tuple[str, str]], jobs: int, on_artifact: Callable[[Artifact], None]
    ) -> Sequence[Artifact]:
        made: dict[tuple[str, str], Artifact] = {}
        for arch in dict.fromkeys(arch for _, arch in wanted):
            mine = [record for record, each in wanted if each == arch]
            calls, kernels = [r for r in mine if not is_kernel(r)], [r for r in mine if is_kernel(r)]
            checker = Checker(_CHECK, self.environment(arch))
            held = checker.ask(arch, [(r, r) for r in calls], jobs, partial(_held, arch), on_artifact)
            made |= {(record, arch): artifact for record, artifact in zip(calls, held, strict=True)}
            if kernels:
                lowered = lower_all(kernels, arch, jobs, on_artifact)
                made |= {(record, arch): artifact for record, artifact in zip(kernels, lowered, strict=True)}
        return [made[pair] for pair in wanted]

    def wrong_kernels(self, arch: str) -> Sequence[WrongKernel]:
        interprets = arch in VECTOR_CORES and importlib.util.find_spec("triton") is not None
        graphs = _WRONG_GRAPHS if find_soc(arch).has_graphs else ()
        return (*_WRONG_KERNELS, *graphs, *(slip.control for slip in SLIPS if interprets))

    def wrong_plan(self, name: str) -> type[Plan]:
        if slip := next((slip for slip in SLIPS if slip.control.name == name), None):
            return plan_with(slip)
        from opsocket_ascend.verification.controls import WRONG_PLANS

        return WRONG_PLANS[name]

    def wrong_launches(self, arch: str) -> Sequence[WrongLaunch]:
        from opsocket_ascend.verification.controls import MISUSES, wrong_calls

        records = wrong_calls()
        calls = [WrongLaunch(name, wrong, arch, records[name].dumps(), how) for name, wrong, how in _WRONG_CALLS]
        misuses = [
            WrongLaunch(name, misuse.wrong, arch, name, f"ContractError: {misuse.argument}: ")
            for name, misuse in MISUSES.items()
        ]
        if python() is None or not is_target(arch):
            return calls + misuses
        return [
            *calls,
            *misuses,
            *(WrongLaunch(name, wrong, arch, _launch(*made), how) for name, wrong, how, made in _WRONG_LAUNCHES),
        ]


def is_kernel(record: str) -> bool:
    """Whether a record is the launch of a Triton kernel: others are calls, or the names of controls."""
    return record.startswith("{") and "signature" in json.loads(record)


def _held(arch: str, told: Mapping[str, Any]) -> Artifact:
    problems = tuple(told["problems"])
    return Artifact(told["kernel"], told["variant"], arch, facts_of(told), problems, (), told["seconds"])


def _launch(kernel: str, tensors: tuple[tuple[str, str], ...], constants: Mapping[str, int]) -> str:
    signature = (*tensors, *((name, "constexpr") for name in constants))
    names = tuple(name for name, _ in tensors)
    where = f"opsocket_ascend.hivm.controls:{kernel}"
    return Specialization(where, signature, tuple(constants.items()), names, 4, 2).dumps()
