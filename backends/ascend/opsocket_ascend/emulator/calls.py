"""aclnn calls, from raw argument registers to answers: signatures, the table of answers, the trace.

An aclnn operator is two functions. `aclnnXGetWorkspaceSize(arguments..., uint64_t *bytes, aclOpExecutor **executor)`
takes the arguments; `aclnnX(workspace, bytes, executor, stream)` runs. Here the first reads the arguments by the
operator's signature, and the second computes. What only describes (`at_once`) is one function, which runs as it is
called. Operators of the older interface, aclop, are called with tensors alone, and are answered from the same table.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count, pairwise
from typing import Any, Final

from opsocket_ascend.emulator import handles
from opsocket_ascend.emulator.handles import EmulationError, Tensor

TRACE: Final = "OPSOCKET_EMULATE_TRACE"
"""Variable: a file to which every aclnn call is appended, a JSON object a line."""

_INTEGER_REGISTERS, _FLOAT_REGISTERS = 6, 8
_SUCCESS, _REFUSED = 0, 161002  # ACLNN_ERR_PARAM_INVALID
_SIZE, _MOST = "GetWorkspaceSize", "GetMaxWorkspaceSize"
_OUT_POINTERS_APART = 64
"""Bytes between the two local variables of a caller that end a call's arguments, at most, as compilers place them."""

Answer = Callable[..., None]
Workspace = Callable[[dict[str, Any], bool], int]
"""Bytes that a call of these arguments wants; or with any lengths, where the second is true."""


@dataclass(frozen=True)
class Signature:
    """Names and kinds of an operator's arguments. Kinds: handle (any aclTensor, list, array or scalar; may be null),
    int, bool, double, float, text; pointer, the address of what an answer writes to host memory."""

    arguments: tuple[tuple[str, str], ...]
    answer: Answer
    workspace: Workspace


_ANSWERS: dict[str, Signature] = {}
_AT_ONCE: dict[str, Signature] = {}
_KINDS: Final = ("handle", "int", "bool", "double", "float", "text", "pointer")
_pending: dict[int, tuple[str, dict[str, Any], int]] = {}
"""By executor: operator, arguments, bytes of workspace."""

_observers: list[Callable[[str, dict[str, Any]], None]] = []
_unanswered: list[bool] = []


def answers(operator: str, arguments: str, workspace: Workspace | None = None) -> Callable[[Answer], Answer]:
    """Register the answer to an operator. arguments: "self other alpha dim:int out", kind "handle" where none is given;
    the answer is called with them by position."""
    return _registering(_ANSWERS, operator, arguments, workspace or _none)


def at_once(function: str, arguments: str) -> Callable[[Answer], Answer]:
    """Register what a function of CANN does that has no second half: it computes nothing on the device, and is in no
    trace."""
    return _registering(_AT_ONCE, function, arguments, _none)


def _none(arguments: dict[str, Any], most: bool) -> int:
    return 0


def _registering(
    table: dict[str, Signature], operator: str, arguments: str, workspace: Workspace
) -> Callable[[Answer], Answer]:
    pairs = tuple((name, kind or "handle") for name, _, kind in (word.partition(":") for word in arguments.split()))
    unknown = [kind for _, kind in pairs if kind not in _KINDS]
    if unknown:
        raise ValueError(f"{operator}: unknown kinds {unknown}")

    def register(answer: Answer) -> Answer:
        table[operator] = Signature(pairs, answer, workspace)
        return answer

    return register


def observe(observer: Callable[[str, dict[str, Any]], None]) -> Callable[[], None]:
    """Have every call reported, before it is answered; returns what ends that."""
    _observers.append(observer)
    return lambda: _observers.remove(observer)


def leave_unanswered() -> None:
    """From now on this process's calls are taken and reported, and nothing is computed: outputs keep what they held."""
    _unanswered.append(True)


def family(operator: str) -> str:
    """The module of `answers` that answers an operator."""
    return _ANSWERS[operator].answer.__module__.rpartition(".")[2]


def written(operator: str, arguments: dict[str, Any]) -> str:
    """A call as a line of text, without addresses and what is absent: what golden traces hold."""
    given = [f"{name}={_text(value)}" for name, value in arguments.items() if value is not None]
    return f"{operator}({', '.join(given)})"


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, float):
        return f"{value:.7g}"
    return str(value)


class Door:
    """The callback behind all trampolines. memory: address, bytes -> where they are, 0 where they are not.

    keep: stream, number of a call, where to put the number of the call that it replaces -> 0: it is answered now; 1: a
    graph keeps it; less: CANN's error. A graph asks by `again` for what it has kept, and `forget`s it.
    """

    def __init__(self, memory: Any, set_message: Callable[[bytes], None], keep: Callable[..., int]) -> None:
        self._memory, self._set_message, self._keep = memory, set_message, keep
        self._numbers = count(1)  # one for each call, whichever thread makes it
        self._kept: dict[int, tuple[str, Callable[[], None]]] = {}
        pointer = ctypes.POINTER
        kind = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.c_char_p, pointer(ctypes.c_uint64), pointer(ctypes.c_double), pointer(ctypes.c_uint64)
        )
        self.callback = kind(self._call)
        tensors = pointer(ctypes.c_void_p)
        aclop = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, tensors, ctypes.c_int, tensors, ctypes.c_int)
        self.aclop_callback = aclop(self._call_aclop)
        self.again = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_uint64)(self._again)
        self.forget = ctypes.CFUNCTYPE(None, ctypes.c_uint64)(self._forget)

    def _call(self, name: bytes, integers: Any, floats: Any, stack: Any) -> int:
        function = name.decode()
        if function in _AT_ONCE:
            return self._guarded(function, lambda: self._describe(function, _Words(integers, floats, stack)))
        most = function.endswith(_MOST)
        if most or function.endswith(_SIZE):
            operator = function.removesuffix(_MOST if most else _SIZE)
            return self._guarded(function, lambda: self._prepare(operator, integers, floats, stack, most))
        return self._guarded(function, lambda: self._run(function, *(integers[i] for i in range(4))))

    def _call_aclop(self, name: bytes, inputs: Any, input_count: int, outputs: Any, output_count: int) -> int:
        operator = name.decode()
        tensors = [*inputs[:input_count], *outputs[:output_count]]
        return self._guarded(operator, lambda: self._run_aclop(operator, tensors))

    def _again(self, number: int) -> int:
        operator, work = self._kept[number]
        return self._guarded(f"{operator}, replayed", work)

    def _forget(self, number: int) -> None:
        self._kept.pop(number, None)

    def _guarded(self, function: str, work: Callable[[], int | None]) -> int:
        """Nothing may pass through the C frames above, and torch_npu shows no more than a number."""
        try:
            return work() or _SUCCESS
        except EmulationError as error:
            return self._refuse(f"{function}: {error}")
        except Exception:
            return self._refuse(f"{function}: {traceback.format_exc()}")

    def _refuse(self, text: str) -> int:
        self._set_message(text.encode()[:500])
        print(f"opsocket's emulated NPU: {text}", file=sys.stderr)
        return _REFUSED

    def _prepare(self, operator: str, integers: Any, floats: Any, stack: Any, most: bool) -> None:
        signature = _ANSWERS.get(operator)
        if signature is None:
            raise EmulationError(f"no answer to this operator; it was given {self._guess(integers, floats, stack)}")
        words = _Words(integers, floats, stack)
        arguments = self._arguments(signature, words)
        size, executor = words.integer(), words.integer()
        wanted = signature.workspace(arguments, most)
        ctypes.c_uint64.from_address(size).value = wanted
        number = next(self._numbers)
        ctypes.c_uint64.from_address(executor).value = number
        if not most:
            _pending[number] = (operator, arguments, wanted)

    def _describe(self, function: str, words: _Words) -> None:
        signature = _AT_ONCE[function]
        signature.answer(*self._arguments(signature, words).values())

    def _arguments(self, signature: Signature, words: _Words) -> dict[str, Any]:
        return {name: self._argument(kind, words) for name, kind in signature.arguments}

    def _argument(self, kind: str, words: _Words) -> Any:
        if kind in ("double", "float"):
            return words.floating(kind)
        word = words.integer()
        if kind == "handle":
            return handles.read(word, self._memory)
        if kind == "pointer":
            return word
        if kind == "text":
            return ctypes.string_at(word).decode() if word else None
        return bool(word & 0xFF) if kind == "bool" else ctypes.c_int64(word).value

    def _run(self, operator: str, workspace: int, bytes_there: int, executor: int, stream: int) -> int:
        prepared, arguments, wanted = _pending.pop(executor)
        if prepared != operator:
            raise EmulationError(f"the executor was prepared for {prepared}")
        if wanted > bytes_there or (wanted and not self._memory(workspace, wanted)):
            raise EmulationError(f"a workspace of {bytes_there} bytes where {wanted} are wanted")
        self._report(operator, arguments)
        replaced = ctypes.c_uint64(0)
        fate = self._keep(stream, executor, ctypes.byref(replaced))
        if fate < 0:
            return -fate
        if fate:
            self._replace(replaced.value, operator)
            self._kept[executor] = (operator, lambda: self._compute(operator, arguments))
        else:
            self._compute(operator, arguments)
        return _SUCCESS

    def submit(self, stream: int, kernel: str, work: Callable[[], None]) -> None:
        """A launch that is no call: carried out now, or kept by the stream's graph."""
        number, replaced = next(self._numbers), ctypes.c_uint64(0)
        fate = self._keep(stream, number, ctypes.byref(replaced))
        if fate < 0:
            raise EmulationError(f"{kernel}: CANN's error {-fate}")
        if fate:
            self._replace(replaced.value, kernel)
            self._kept[number] = (kernel, work)
        else:
            work()

    def _replace(self, number: int, operator: str) -> None:
        if number:
            before, _ = self._kept.pop(number)
            if before != operator:
                raise EmulationError(f"a task of {before} is updated with this operator")

    def _run_aclop(self, operator: str, tensors: list[int]) -> None:
        given = [handles.read(address, self._memory) for address in tensors]
        signature = _ANSWERS.get(operator)
        if signature is None or len(signature.arguments) != len(given):
            raise EmulationError(f"no answer to this operator; it was given {', '.join(map(_text, given))}")
        arguments = dict(zip((name for name, _ in signature.arguments), given, strict=True))
        self._report(operator, arguments)
        self._compute(operator, arguments)

    def _report(self, operator: str, arguments: dict[str, Any]) -> None:
        _trace(operator, arguments)
        for observer in _observers:
            observer(operator, arguments)

    def _compute(self, operator: str, arguments: dict[str, Any]) -> None:
        if not _unanswered:
            _ANSWERS[operator].answer(*arguments.values())

    def _guess(self, integers: Any, floats: Any, stack: Any) -> str:
        """Words that could be its arguments, for whoever writes its signature."""
        words = [integers[i] for i in range(_INTEGER_REGISTERS)] + [stack[i] for i in range(32)]
        seen = []
        for word, following in pairwise(words):
            if word > 1 << 32 and abs(following - word) <= _OUT_POINTERS_APART:
                break
            if handles.is_handle(word):
                seen.append(_text(handles.read(word, self._memory)))
            else:
                seen.append(hex(word) if word > 1 << 32 else str(ctypes.c_int32(word & 0xFFFFFFFF).value))
        return f"({', '.join(seen)}), floats {[floats[i] for i in range(2)]}"


class _Words:
    """The argument words of a call in the System V convention for x86-64: six integers and eight floats in registers,
    the rest on the stack, in order."""

    def __init__(self, integers: Any, floats: Any, stack: Any) -> None:
        self._integers, self._floats, self._stack = integers, floats, stack
        self._integer = self._float = self._on_stack = 0

    def integer(self) -> int:
        if self._integer < _INTEGER_REGISTERS:
            self._integer += 1
            return int(self._integers[self._integer - 1])
        self._on_stack += 1
        return int(self._stack[self._on_stack - 1])

    def floating(self, kind: str) -> float:
        if self._float >= _FLOAT_REGISTERS:
            raise EmulationError("more float arguments than registers")
        self._float += 1
        double = ctypes.c_double(self._floats[self._float - 1])
        if kind == "double":
            return double.value
        return ctypes.c_float.from_buffer_copy(double).value


def _trace(operator: str, arguments: dict[str, Any]) -> None:
    path = os.environ.get(TRACE)
    if not path:
        return
    record = {"operator": operator, "arguments": {name: _json(value) for name, value in arguments.items()}}
    with open(path, "a") as file:
        file.write(json.dumps(record) + "\n")


def _json(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_json(item) for item in value]
    if not isinstance(value, Tensor):
        return value
    return {
        "dtype": value.dtype.name,
        "format": value.format,
        "shape": value.shape,
        "strides": value.strides,
        "storage": value.storage,
        "offset": value.offset,
    }
