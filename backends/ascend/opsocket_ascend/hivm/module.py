"""What an optimised HIVM module says of itself: on-chip memory, how it reaches the NPU's memory, matrix products."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Final

_BITS: Final = {"f64": 64, "i64": 64, "f32": 32, "i32": 32, "f16": 16, "bf16": 16, "i16": 16, "i8": 8, "i1": 1}
_SPACES: Final = {"ub": "UB", "cbuf": "L1", "ca": "L0A", "cb": "L0B", "cc": "L0C"}
"""HIVM's address spaces on the chip, by the names of the buffers that they are."""

_CONSTANT: Final = re.compile(r"(%\w+) = arith\.constant (\d+) : i64")
_BUFFER: Final = re.compile(
    r"hivm\.hir\.pointer_cast\(([^)]*)\)(?:\s*\[[^]]*\])? : "
    r"memref<([^#>]*?)(?:, strided<[^>]*>)?, #hivm\.address_space<(\w+)>>"
)
_SIZE: Final = re.compile(r'"(UB|L1|L0A|L0B|L0C)_SIZE", (\d+)')
_BY_ELEMENT: Final = re.compile(r"memref\.(?:load|store) [^\n]*#hivm\.address_space<gm>>")
_COPY: Final = re.compile(r"call @(?:load_gm_|store_\w+_to_gm|nd2nz_|fixpipe_)")
_MATRIX: Final = re.compile(r"call @mma_")


def facts(text: str, core: str, multiplies: bool, said: str) -> dict[str, float | int | str | list[str]]:
    """By name. `X bytes`: of the on-chip buffer X, the end of what the compiler's plan puts there, `X limit`: what the
    chip has; only of buffers that are used. `copies`: calls that bring a run of memory in or out. `by element`: places
    that load or store one element of the NPU's memory. `matrix`: instructions of matrix units, where the source
    `multiplies`. `buffers`: "single" where two of each did not fit."""
    limits = {name: int(bits) // 8 for name, bits in _SIZE.findall(text)}
    used: dict[str, int] = {}
    for name, end in _ends(text):
        used[name] = max(used.get(name, 0), end)
    found: dict[str, float | int | str | list[str]] = {"core": core}
    for name in _SPACES.values():
        if name in used:
            found |= {f"{name} bytes": used[name], f"{name} limit": limits[name]}
    found["copies"] = len(_COPY.findall(text))
    found["by element"] = len(_BY_ELEMENT.findall(text))
    if multiplies:
        found["matrix"] = len(_MATRIX.findall(text))
    found["buffers"] = (
        "single" if "set enable-auto-multi-buffer to false; compilation then succeeded" in said else "double"
    )
    return found


def _ends(text: str) -> Iterator[tuple[str, int]]:
    """Each buffer of the plan, and where it ends there, in bytes."""
    constants = {name: int(value) for name, value in _CONSTANT.findall(text)}
    for operands, shape, space in _BUFFER.findall(text):
        if space not in _SPACES:
            continue
        *sizes, kind = shape.split("x")
        if "?" in sizes or kind not in _BITS:
            continue
        size = -(-math.prod(map(int, sizes)) * _BITS[kind] // 8)
        for operand in operands.split(","):
            if operand.strip() in constants:
                yield _SPACES[space], constants[operand.strip()] + size
