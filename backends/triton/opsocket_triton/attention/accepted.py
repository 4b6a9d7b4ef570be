"""Spills of compiled attention that are accepted, and why: what their disassembly shows.

Apart from the kernels, of which everything that was compiled is compiled anew when their lines move.
"""

from __future__ import annotations

from typing import Final

from opsocket_triton.artifact import FEW, Accepted

_OUTSIDE: Final = (
    "up to ten values are stored before the loop over keys and read after it, none in it, so that 128 registers let a "
    "second program be there: read in the disassembly of seven launches, inferred for others"
)
_WIDE: Final = (
    "rows of a factor in f32 are held whole where no matrix unit takes them, and a lane has 256 registers; numerics "
    "that permit 16 bits have none of it"
)
_TWICE: Final = (
    "WMMA takes whole rows of both factors, on RDNA 3 each twice, which fill 256 registers from heads of 128 on; a "
    "loop over channels would read q again for every tile of keys"
)

_NOT_IN_MEMORY: Final = Accepted("two values lie in accumulation registers, none in memory", 0)
_FEW: Final = Accepted(FEW, 32)
_EXACT: Final = Accepted(_OUTSIDE, 40, {"QK": "f32"})
_RDNA: Final = (
    Accepted(_WIDE, 2048, {"QK": "f32", "D0": 512}),
    Accepted(_WIDE, 576, {"QK": "f32", "D0": 256}),
    Accepted(_WIDE, 128, {"QK": "f32", "D0": 128}),
    Accepted(_TWICE, 2560, {"D0": 512}),
    Accepted(_TWICE, 640, {"D0": 256}),
    Accepted(_TWICE, 400, {"D0": 128}),
    Accepted(_TWICE, 64, {"D0": 64}),
)

ATTEND: Final = {
    **{("attend", arch, "spills"): (_EXACT, _FEW) for arch in ("sm_80", "sm_90", "sm_100", "sm_120")},
    **{("attend", arch, "spills"): _RDNA for arch in ("gfx1100", "gfx1201")},
    ("attend", "gfx950", "spills"): (_NOT_IN_MEMORY,),
}
MERGE: Final = {("merge_parts", arch, "spills"): (Accepted(FEW, 16),) for arch in ("sm_100", "sm_120")}
