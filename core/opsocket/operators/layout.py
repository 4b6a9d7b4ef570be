"""What a KV cache holds (logical), and where its bytes lie (physical, the backend's choice, always declared).

Logical truth: `K[t, h, d]` of the token at slot s lives in block s // block_size at offset s % block_size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

from opsocket.operators.dtypes import dtype_info
from opsocket.operators.errors import ContractError

KVCode = Literal["f32", "f16", "bf16", "f8e4m3fn", "f8e4m3fnuz", "f8e5m2", "i8", "i4", "i2"]
Granularity = Literal["none", "tensor", "head", "channel", "token_head"]

_MAX_CODE: Final = {"i8": 127.0, "i4": 7.0, "i2": 1.0, "f8e4m3fn": 448.0, "f8e4m3fnuz": 240.0, "f8e5m2": 57344.0}


@dataclass(frozen=True)
class KVFormat:
    """How K or V elements are stored. The quantizer is pinned, so that every backend stores the same codes.

    With x in f32 and scale s: integer codes are q = clamp(round_half_even(x / s), -max, max), max = 127 (i8), 7 (i4),
    1 (i2), read back as q * s; fp8 codes are x / s rounded to nearest even and saturated at the largest finite value,
    NaN stays NaN. `zero_point` names asymmetric codes, whose quantizer version 1 does not pin: backends refuse it.

    granularity: which elements share a scale. none: s = 1. tensor f32[1], head f32[Hkv], channel f32[Hkv, D]: static,
    given to `allocate_cache`. token_head: computed on write as s = amax / max over the D elements of one token and
    head, stored in `scale_dtype` and used as stored; an all-zero token stores s = 0 and codes 0.
    """

    code: KVCode
    granularity: Granularity = "none"
    scale_dtype: Literal["f32", "f16"] = "f32"
    zero_point: bool = False

    def __post_init__(self) -> None:
        integer = self.code in ("i8", "i4", "i2")
        if integer and self.granularity == "none":
            raise ContractError("granularity", f"a scale for {self.code} codes", "'none'")
        if self.code in ("f32", "f16", "bf16") and self.granularity != "none":
            raise ContractError("granularity", f"'none' for {self.code}", repr(self.granularity))
        if self.zero_point and not integer:
            raise ContractError("zero_point", "False for float codes", True)

    @property
    def max_code(self) -> float:
        """The largest code (integers) or finite value (fp8); `inf` for unquantized formats."""
        return _MAX_CODE.get(self.code, float("inf"))

    @property
    def is_static(self) -> bool:
        """Whether the caller gives the scales when the cache is allocated."""
        return self.granularity in ("tensor", "head", "channel")

    @property
    def is_quantized(self) -> bool:
        return self.code in _MAX_CODE

    @property
    def bits(self) -> int:
        return {"i4": 4, "i2": 2, "i8": 8}.get(self.code) or 8 * dtype_info(self.code).itemsize


@dataclass(frozen=True)
class CacheSpec:
    """The logical cache of one layer: `num_blocks` blocks of `block_size` tokens.

    kind "latent" (multi-head latent attention, DeepSeek-AI 2024, with W_UK and W_UV absorbed into the projections of q
    and of the output): one logical vector of head_dim_k per token, the compressed KV first and the rotary key after it;
    num_kv_heads = 1, v = None, and V is its first head_dim_v channels. Every query head reads it.
    """

    num_blocks: int
    block_size: int
    num_kv_heads: int
    head_dim_k: int
    head_dim_v: int
    k: KVFormat
    v: KVFormat | None
    kind: Literal["kv", "latent"] = "kv"

    def __post_init__(self) -> None:
        for name in ("num_blocks", "block_size", "num_kv_heads", "head_dim_k", "head_dim_v"):
            if getattr(self, name) < 1:
                raise ContractError(name, "at least 1", getattr(self, name))
        if self.kind not in ("kv", "latent"):
            raise ContractError("kind", "one of ['kv', 'latent']", repr(self.kind))
        if self.kind == "kv" and self.v is None:
            raise ContractError("v", "a KVFormat for kind 'kv'", None)
        if self.kind == "latent":
            if self.v is not None:
                raise ContractError("v", "None for kind 'latent': V is part of the latent vector", self.v)
            if self.num_kv_heads != 1:
                raise ContractError("num_kv_heads", "1 for kind 'latent'", self.num_kv_heads)
            if self.head_dim_v > self.head_dim_k:
                raise ContractError(
                    "head_dim_v", f"at most head_dim_k={self.head_dim_k} for kind 'latent'", self.head_dim_v
                )

    @property
    def num_slots(self) -> int:
        return self.num_blocks * self.block_size


@dataclass(frozen=True)
class Plane:
    """One array of a cache. `order` names its dimensions, slowest first, from: block, head, token, dim, scale.

    An opaque plane (vendor tiles) has order None and an `opaque_id` that names the arrangement.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    order: tuple[str, ...] | None = None
    opaque_id: str | None = None

    def __post_init__(self) -> None:
        dtype_info(self.dtype, f"plane {self.name}: dtype")
        if (self.order is None) == (self.opaque_id is None):
            raise ContractError(
                f"plane {self.name}", "an order or an opaque_id, not both", (self.order, self.opaque_id)
            )
        if self.order is not None and len(self.order) != len(self.shape):
            raise ContractError(f"plane {self.name}: order", f"{len(self.shape)} names", self.order)


@dataclass(frozen=True)
class CacheLayout:
    """A physical layout: declared by the session that allocates it, never sniffed from shapes.

    kernel_block_size divides the spec's block_size: core expands block tables where kernels want smaller pages.
    """

    id: str
    planes: tuple[Plane, ...]
    kernel_block_size: int
    bytes_per_block: int
