"""What a request is compiled to: the types of its products, and the tiles that on-chip memory holds."""

from __future__ import annotations

from dataclasses import dataclass

from opsocket.operators import AttentionSpec, CacheSpec, KVFormat, Request
from opsocket_triton.arches import ARCHES

_LEAST = 16
"""Channels of the smallest tile of a product."""


@dataclass(frozen=True)
class Products:
    """Types of the factors of q k and of p v. "f32": exact products, sums rounded to nearest; "bf16", "f16": by matrix
    units."""

    qk: str
    pv: str


@dataclass(frozen=True)
class Tile:
    """rows, keys: of a tile. unmasked: whether masks are left out where every row sees every key; a small tile meets
    few keys, and products without matrix units cost so much more that it would gain nothing."""

    rows: int
    keys: int
    warps: int
    stages: int
    unmasked: bool


def products(request: Request, arch: str) -> Products:
    """What the request's numerics permit on an architecture.

    Matrix units take 16-bit factors and may cut off sums. Codes of 8 bits and less are exact in 16 bits, and a scale
    per token or head multiplies sums, so only a scale per channel of K needs `dequantized`.
    """
    spec = request.spec
    assert isinstance(spec, AttentionSpec)
    numerics, exact = spec.numerics, Products("f32", "f32")
    step = ARCHES[arch].chained_products if arch in ARCHES else 1
    if numerics.accumulate != "f32_truncating" or numerics.accumulate_step > step:
        return exact
    k, v = (request.cache.k, request.cache.v or request.cache.k) if request.cache else (None, None)
    made = Products(_qk(spec, k), _pv(spec, v))
    # CDNA 2 takes f16's subnormal numbers for zeros (AMD's instruction set manual, MFMA).
    return exact if arch == "gfx90a" and "f16" in (made.qk, made.pv) else made


def _qk(spec: AttentionSpec, k: KVFormat | None) -> str:
    wide = spec.kv_dtype if k is None else k.code
    if spec.q_dtype == "f32":
        return "f32"
    if k is None or not k.is_quantized:
        return spec.q_dtype if wide == spec.q_dtype else "f32"
    if k.granularity == "channel" and spec.numerics.dequantized != spec.q_dtype:
        return "f32"
    return spec.q_dtype


def _pv(spec: AttentionSpec, v: KVFormat | None) -> str:
    wide, narrow = (spec.kv_dtype if v is None else v.code), spec.numerics.probabilities
    if narrow == "f32":
        return "f32"
    if v is None or not v.is_quantized:
        return narrow if wide == narrow else "f32"
    # A probability times a scale of a token may leave the range of f16.
    return "f32" if narrow == "f16" and v.granularity == "token_head" else narrow


def split_dim(dim: int) -> tuple[int, int]:
    """A head size as the powers of two of one tile, or of two that together are less than the next one."""
    whole = max(_LEAST, 1 << (dim - 1).bit_length())
    if whole in (dim, _LEAST):
        return whole, 0
    rest = max(_LEAST, 1 << (dim - whole // 2 - 1).bit_length())
    return (whole // 2, rest) if rest < whole // 2 else (whole, 0)


def tile(request: Request, made_of: Products, arch: str, is_large: bool) -> Tile:
    """The tile of a request's small or large items: the largest whose rows, factors and sums stay in registers."""
    spec = request.spec
    assert isinstance(spec, AttentionSpec)
    of_qk, of_vo = split_dim(spec.head_dim_qk), split_dim(spec.head_dim_vo)
    widest = max(sum(of_qk), sum(of_vo))
    kind = _kind(arch)
    if "f32" in (made_of.qk, made_of.pv):
        by_channel = request.cache is not None and request.cache.k.granularity == "channel"
        return _exact_tile(widest, kind, by_channel)
    has_more = spec.mask == "tree" or spec.alibi or spec.softcap is not None
    has_codes = request.cache is not None and request.cache.k.is_quantized
    # Codes that become the factors of both products are held in registers, as all factors are on "mma".
    is_tight = widest > 256 and (kind in ("mma", "rdna") or has_codes)
    if not is_large or is_tight or (has_more and kind == "rdna"):
        return _small_tile(widest, kind, is_split=of_qk[1] + of_vo[1] > 0)
    if widest > 256:
        return Tile(32, 32, 4 if kind == "cdna" else 8, 2, unmasked=True)
    if kind == "rdna":
        return Tile(32, 16, 4 if widest <= 128 else 8, 2, unmasked=True)
    if kind == "cdna" and widest > 64 and _has_packed(request):
        # Codes taken apart need more than the 256 registers that eight warps leave a lane.
        return Tile(64, 32 if widest > 128 or has_more else 64, 4, 2, unmasked=True)
    if widest > 128 or has_more:
        return Tile(64, 32, 8, 2, unmasked=True)
    return Tile(128, 32 if widest > 64 and kind == "mma" else 64, 8, 2, unmasked=True)


def _has_packed(request: Request) -> bool:
    """Whether several codes of the cache lie in a byte."""
    cache = request.cache
    return cache is not None and any(fmt is not None and fmt.code in ("i4", "i2") for fmt in (cache.k, cache.v))


def _small_tile(widest: int, kind: str, is_split: bool) -> Tile:
    """is_split: whether a head is of two tiles, of which each has factors in registers."""
    if kind == "rdna":
        return Tile(16, 16 if widest > 64 else 32, 4 if widest <= 256 else 8, 2, unmasked=False)
    keys = 64 if widest <= 128 and not is_split else 32
    return Tile(16, keys, 4 if widest <= 256 or kind == "cdna" else 8, 2, unmasked=False)


def _exact_tile(widest: int, kind: str, by_channel: bool) -> Tile:
    """Without matrix units for f32, which CDNA has, a lane holds the rows and columns of both factors that it needs.

    One for all items: more rows would read K and V less often, but on-chip memory, from which a product without matrix
    units takes up to three factors for every two operations, is the limit before that.
    """
    if kind == "rdna":
        return Tile(16, 16, 16, 1, unmasked=False)
    if by_channel and kind != "cdna" and 128 < widest <= 256:
        # Scaled rows of q are read before the barrier behind which K is: two of them are 512 registers.
        return Tile(16, 32, 16, 1, unmasked=False)
    # Of one tile of logits each of CDNA's warps holds both factors whole: more than the 256 registers that eight warps
    # leave a lane.
    warps = 4 if kind == "cdna" and widest > 128 else 8
    return Tile(16, 32 if widest <= 256 else 16, warps, 1, unmasked=False)


def _kind(arch: str) -> str:
    """By what its matrix units take their factors from, and how many registers a lane has: "wgmma": on-chip memory;
    "mma": registers; "cdna": registers, of which there are twice as many; "rdna": registers, each factor twice."""
    known = ARCHES.get(arch)
    if known is None or known.backend == "cuda":
        return "wgmma" if arch in ("sm_90", "sm_100") else "mma"
    return "cdna" if known.warp == 64 else "rdna"


def shares_values(spec: AttentionSpec, cache: CacheSpec | None) -> bool:
    """Whether the values of a latent cache are just the first tile of its keys, as it is."""
    if cache is None or cache.v is not None or cache.k.granularity == "channel":
        return False
    return split_dim(spec.head_dim_vo) == (split_dim(spec.head_dim_qk)[0], 0)
