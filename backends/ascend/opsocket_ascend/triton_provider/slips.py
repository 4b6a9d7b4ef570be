"""The kernels with one slip each in their source: what the suite has to find on an emulated NPU."""

from __future__ import annotations

from typing import Final

from opsocket.operators import WrongKernel
from opsocket_triton.slips import Slip

_PACKAGE: Final = "opsocket_ascend.triton_provider"

SLIPS: Final = (
    Slip(
        WrongKernel("last part of a merge", "the loop over parts stops one too early", "merge_states", "f32", "out["),
        "merge:TritonMergeStates", "merge_kernel:merge_heads",
        "for part in range(parts):", "for part in range(parts - 1):", _PACKAGE,
    ),
    Slip(
        WrongKernel(
            "heads beyond the last", "a mask knows of channels only", "merge_states", "f16", "out-of-bounds load"
        ),
        "merge:TritonMergeStates", "merge_kernel:merge_heads",
        "mask = inside[:, None] &", "mask = (head >= 0)[:, None] &", _PACKAGE,
    ),
    Slip(
        WrongKernel(
            "scales of heads too close", "a row of the plane of scales is taken for as long as there are heads",
            "cache_write", "bf16", "cache_read k[", "kv=i8.token_head",
        ),
        "cache:TritonCacheWrite", "cache_kernels:write_tokens",
        "slot % block_size) + head * block_size", "slot % block_size) + head * heads", _PACKAGE,
    ),
)  # fmt: skip
