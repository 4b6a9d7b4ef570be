"""The last run of a native plan again, with other arrays alike, in one call of the library.

A run that core has validated is taken down: the shapes, dtypes and strides of its arrays, and its command. The next run
with arrays of the same would be validated with the same result and have the same command but for addresses, so the
library compares the ones and replaces the others (`src/repeat.h`), reading tensors by DLPack's table of C functions.
What is not alike, or not exactly a tensor on the CPU, goes the long way, which knows every error. With a torch that
lacks that table all runs do.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from functools import cache, partial
from typing import Any, Final

import torch

from opsocket_cpu.native.command import Command, workspace_of
from opsocket_cpu.native.library import PATH, failure

_PYTHON: Final = (
    "PyTuple_GetItem", "PyObject_Type", "Py_DecRef", "PyErr_Clear", "PyEval_SaveThread", "PyEval_RestoreThread",
    "PyObject_CallOneArg",
)  # fmt: skip
"""`PythonFunctions` of repeat.h, in its order."""


class Fields:
    """Where in a command addresses stand.

    arguments: the field of each of `_run`'s arguments, in their order; "_" for the one that is no array. made: the
    field of each array that `_run` returns, for those which it was not given.
    """

    def __init__(self, command: type[Command], arguments: str, made: str) -> None:
        def places(names: list[str]) -> list[int]:
            return [-1 if name == "_" else getattr(command, name).offset for name in names]

        names = arguments.split()
        self.key = names.index("_") if "_" in names else None
        self._arguments, self._made = places(names), places(made.split())
        self._arrays: dict[tuple[int, ...], Any] = {}

    def with_made(self, made: tuple[int, ...]) -> Any:
        """A C array: the arguments' places and those of the results of these numbers."""
        if made not in self._arrays:
            places = [*self._arguments, *(self._made[i] for i in made)]
            self._arrays[made] = (ctypes.c_int64 * len(places))(*places)
        return self._arrays[made]


class Repeats:
    """The last run of a plan; where a run has an argument that is no array, the last with each such object."""

    def __init__(self, fields: Fields, size: int, threads: int) -> None:
        self._fields, self._size, self._threads = fields, size, threads
        self._again = _library().opsocket_repeat
        self._known: dict[int | None, _Run] = {}

    def run(self, args: tuple[Any, ...]) -> Any:
        """What `_run` returns; None, and nothing has run, where these arguments are not like those before."""
        key = self._fields.key
        known = self._known.get(None if key is None else id(args[key]))
        if known is None or known.command is None:
            return None
        every = args
        for make in known.make:
            every += (make(),)
        if status := self._again(known.address, every):
            if status < 0:
                return None
            raise failure(status, workspace_of(known.command))
        places = known.places
        return every[places] if type(places) is int else tuple([every[place] for place in places])

    def learn(self, args: tuple[Any, ...], result: Any, command: Command | bytes) -> None:
        """Take down a run that was validated, the second in turn of its shape: the first may never come again."""
        key = None if self._fields.key is None else args[self._fields.key]
        name = None if key is None else id(key)
        known = self._known.get(name)
        if known is None:
            known = self._known[name] = _Run()
            if key is not None:
                runs = self._known
                # Before another object can have the same identity.
                known.owner = weakref.ref(key, lambda _: runs.pop(name, None))
        shape = args[0].shape
        if shape != known.shape:
            known.shape = shape
        elif not known.take_down(args, result, command, self._fields, self._size, self._threads):
            known.command = None


class _Run:
    """shape: of the first argument, when it last went the long way. command: None where there is none to repeat."""

    owner: Any = None
    shape: Any = None
    command: Command | bytes | None = None
    address = 0

    def take_down(
        self, args: tuple[Any, ...], result: Any, command: Command | bytes, fields: Fields, size: int, threads: int
    ) -> bool:
        """Whether it can be repeated."""
        if not self.address:
            self._memory = ctypes.create_string_buffer(size)
            self.address = ctypes.addressof(self._memory)
        results = result if isinstance(result, tuple) else (result,)
        fresh = tuple(i for i, array in enumerate(results) if not any(array is arg for arg in args))
        every = (*args, *(results[i] for i in fresh))
        places = [next(i for i, array in enumerate(every) if array is one) for one in results]
        self.places = tuple(places) if isinstance(result, tuple) else places[0]
        # `empty_strided` has less to find out than `empty`, and takes half of the time.
        self.make = [
            partial(torch.empty_strided, one.shape, one.stride(), dtype=one.dtype) for one in every[len(args) :]
        ]
        self.command = command  # with what it points at
        if isinstance(command, bytes):
            where, size = command, len(command)
        else:
            where, size = ctypes.addressof(command), ctypes.sizeof(command)
        learn = _library().opsocket_repeat_learn
        return learn(self.address, every, fields.with_made(fresh), len(every), len(args), where, size, threads) == 0


def repeats(fields: Fields, threads: int) -> Repeats | None:
    """Of one plan; None where this torch's tensors can't be read from C."""
    size = _begin()
    return Repeats(fields, size, threads) if size else None


@cache
def _library() -> ctypes.PyDLL:
    """The library once more, by functions that are called with the interpreter's lock held."""
    library = ctypes.PyDLL(str(PATH))
    library.opsocket_repeat_begin.argtypes = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.py_object] * 4]
    library.opsocket_repeat_begin.restype = ctypes.c_int64
    library.opsocket_repeat_learn.argtypes = [
        ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int32,
    ]  # fmt: skip
    library.opsocket_repeat.argtypes = [ctypes.c_void_p, ctypes.py_object]
    return library


@cache
def _begin() -> int:
    capsule = getattr(torch.Tensor, "__dlpack_c_exchange_api__", None)
    if capsule is None:
        return 0
    pointer: Callable[..., int] = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )
    addresses = [ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value for name in _PYTHON]
    functions = (ctypes.c_void_p * len(addresses))(*addresses)
    table = pointer(capsule, b"dlpack_exchange_api")
    return int(_library().opsocket_repeat_begin(functions, table, torch.Tensor, torch.Tensor.is_neg, True, None))
