"""How this backend is verified where there is no NPU: numbers on an emulated one, calls by the vendor's own checks."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import IO, TYPE_CHECKING, Any, ClassVar, Final, Literal

from opsocket.operators import Artifact, Ladder, Plan, WrongKernel, WrongLaunch
from opsocket_ascend.mode import VARIABLE
from opsocket_ascend.socs import FAMILIES, SOCS

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
_WRONG_CALLS: Final = (
    ("an argument that the schema has not", "npu_dynamic_quant with smooth=None", "schema"),
    ("an argument of another type", "npu_dynamic_quant with a number for a mode", "schema"),
    ("an operator that torch_npu has not", "npu_dynamic_quant_of_ours", "schema"),
    ("K that differs, for the int8 product", "64 and 48: the C++ does not look", "Meta function"),
    ("results of another shape", "a scale for each column is said to have come", "Meta function"),
    ("columns that no word of int4 codes takes", "33: there is no Meta function", "torch_npu"),
    ("another call of CANN", "65 columns are said to have been asked for", "aclnn"),
)


class AscendLadder(Ladder):
    """artifact "schema": every call of a run that asked something of CANN, held against torch_npu's schema, its shape
    functions and its C++ once more, in a process of its own."""

    numerics: ClassVar[Literal["interpreted", "emulated"]] = "emulated"
    artifact: ClassVar[Literal["compiled", "schema"]] = "schema"
    arches = tuple(soc.name for soc in SOCS)
    usual = FAMILIES
    limits = (
        "Never run on an NPU, and nothing is said of speed.",
        "Numbers are those of float64 answers written from CANN's documentation: they show that calls mean what we "
        "think, and nothing of what CANN's kernels compute, round, or do with ties and overflow.",
        "CANN's own checks of tilings, formats and attributes did not run: what torch_npu takes, CANN may refuse.",
        "What a kernel reads past an array's end, waits between streams, events and graphs are not seen: everything "
        "runs at once.",
    )

    def __init__(self) -> None:
        self._recorder: Recorder | None = None

    def environment(self, arch: str) -> Mapping[str, str]:
        return {VARIABLE: arch, "TORCH_DEVICE_BACKEND_AUTOLOAD": "0"}

    def record(self, rehearse: bool = False) -> None:
        from opsocket_ascend.emulator.calls import leave_unanswered
        from opsocket_ascend.verification.recorder import Recorder, is_emulating

        if not is_emulating():
            return
        if rehearse:
            leave_unanswered()
        self._recorder = Recorder()
        self._recorder.__enter__()

    def recorded(self) -> tuple[str, ...]:
        return () if self._recorder is None else self._recorder.take()

    def trace(self) -> str:
        return "" if self._recorder is None else self._recorder.take_trace()

    def kernel_of(self, record: str) -> str:
        name: str = json.loads(record)["operator"]
        return name

    def make(
        self, wanted: Sequence[tuple[str, str]], jobs: int, on_artifact: Callable[[Artifact], None]
    ) -> Sequence[Artifact]:
        made: list[Artifact | None] = [None] * len(wanted)
        lock = threading.Lock()

        def serve(arch: str, indices: Sequence[int]) -> None:
            for index, artifact in zip(indices, _checked(arch, [wanted[i][0] for i in indices], self), strict=True):
                with lock:
                    made[index] = artifact
                    on_artifact(artifact)

        for arch in dict.fromkeys(arch for _, arch in wanted):
            mine = [index for index, (_, each) in enumerate(wanted) if each == arch]
            threads = [threading.Thread(target=serve, args=(arch, mine[i::jobs])) for i in range(min(jobs, len(mine)))]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        return [artifact for artifact in made if artifact is not None]

    def wrong_kernels(self) -> Sequence[WrongKernel]:
        return _WRONG_KERNELS

    def wrong_plan(self, name: str) -> type[Plan]:
        from opsocket_ascend.verification.controls import WRONG_PLANS

        return WRONG_PLANS[name]

    def wrong_launches(self, arch: str) -> Sequence[WrongLaunch]:
        from opsocket_ascend.verification.controls import MISUSES, wrong_calls

        records = wrong_calls()
        calls = [WrongLaunch(name, wrong, arch, records[name].dumps(), how) for name, wrong, how in _WRONG_CALLS]
        return calls + [
            WrongLaunch(name, misuse.wrong, arch, name, f"ContractError: {misuse.argument}: ")
            for name, misuse in MISUSES.items()
        ]


def _checked(arch: str, records: Sequence[str], ladder: Ladder) -> Iterator[Artifact]:
    """An artifact for each record, by a process of its own; one that dies of a record is a problem of that record."""
    left = list(records)
    while left:
        done = 0
        with _Process(ladder.environment(arch)) as process:
            for record in left:
                started = time.perf_counter()
                told = process.ask(record)
                done += 1
                seconds = round(time.perf_counter() - started, 4)
                if told is None:
                    yield Artifact(record[:80], record, arch, problems=(process.obituary(),), seconds=seconds)
                    break
                facts = {k: tuple(v) if isinstance(v, list) else v for k, v in told["facts"].items()}
                yield Artifact(told["kernel"], told["variant"], arch, facts, tuple(told["problems"]), (), seconds)
        left = left[done:]


class _Process:
    """The checker, behind a pipe each way."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._said: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "opsocket_ascend.verification.check"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env={**os.environ, **environment},
        )

    def __enter__(self) -> _Process:
        return self

    def __exit__(self, *error: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        self._said.close()

    def ask(self, record: str) -> dict[str, Any] | None:
        """The answer; None where the process ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(record) + "\n")
            self._process.stdin.flush()
        except OSError:
            return None
        line = self._process.stdout.readline()
        told: dict[str, Any] | None = json.loads(line) if line.endswith("\n") else None
        return told

    def obituary(self) -> str:
        code = self._process.wait()
        self._said.seek(0)
        last = self._said.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"checker: its process ended with code {code}: {''.join(last)}"
