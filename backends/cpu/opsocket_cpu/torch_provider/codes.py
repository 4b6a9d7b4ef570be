"""The pinned quantizer of every KV format, between f32 values and the planes of layout "planar".

Shapes here are [..., D] for values and [..., W] for codes, where W is D for codes of a byte or more, and D * bits / 8
for packed ones; scales are [...]. See `KVFormat` for the rules.
"""

from __future__ import annotations

import torch

from opsocket.operators import KVFormat
from opsocket.operators.torch_session import TORCH_DTYPES


def encode(
    values: torch.Tensor, fmt: KVFormat, static_scale: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """f32 values [..., D] as codes in the plane's dtype, and their scales [...] for granularity token_head.

    static_scale: broadcastable against values.
    """
    if not fmt.is_quantized:
        return values.to(TORCH_DTYPES[fmt.code]), None
    stored = None
    if fmt.granularity == "token_head":
        stored = (values.abs().amax(-1) / fmt.max_code).to(TORCH_DTYPES[fmt.scale_dtype])
        scale = stored.float().unsqueeze(-1)
        values = torch.where(scale == 0, 0.0, values / scale)
    elif static_scale is not None:
        values = values / static_scale
    values = values.clamp(-fmt.max_code, fmt.max_code)
    if fmt.code.startswith("f8"):
        return values.to(TORCH_DTYPES[fmt.code]), stored
    codes = values.round().nan_to_num(nan=0.0).to(torch.int8)
    return (codes if fmt.bits == 8 else _pack(codes, fmt)), stored


def decode(
    codes: torch.Tensor, fmt: KVFormat, stored_scale: torch.Tensor | None, static_scale: torch.Tensor | None
) -> torch.Tensor:
    """The f32 values [..., D] that codes [..., W] stand for: code times scale, rounded once. May alias f32 codes."""
    if fmt.bits < 8:
        values = _unpack(codes, fmt)
    else:
        values = codes.float()
    if stored_scale is not None:
        return values.mul_(stored_scale.float().unsqueeze(-1))
    if static_scale is not None:
        return values.mul_(static_scale)
    return values


def broadcast_scale(scale: torch.Tensor | None, fmt: KVFormat | None, dims: int) -> torch.Tensor | None:
    """A cache's static scale, shaped to broadcast against values [Hkv, ..., D] of `dims` dimensions."""
    if scale is None or fmt is None or fmt.granularity == "tensor":
        return scale
    between = (1,) * (dims - 2)
    return scale.view(scale.shape[0], *between, scale.shape[1] if fmt.granularity == "channel" else 1)


def _pack(codes: torch.Tensor, fmt: KVFormat) -> torch.Tensor:
    """Signed codes as unsigned fields, code + 2^(bits-1), lowest bits first."""
    per_byte = 8 // fmt.bits
    fields = (codes + (1 << (fmt.bits - 1))).to(torch.uint8).unflatten(-1, (-1, per_byte))
    packed = fields[..., 0].clone()
    for place in range(1, per_byte):
        packed |= fields[..., place] << (place * fmt.bits)
    return packed


def _unpack(packed: torch.Tensor, fmt: KVFormat) -> torch.Tensor:
    """The inverse of `_pack`, as f32."""
    per_byte, offset = 8 // fmt.bits, float(1 << (fmt.bits - 1))
    values = torch.empty(*packed.shape, per_byte)
    for place in range(per_byte):
        values[..., place] = (packed >> (place * fmt.bits)) & ((1 << fmt.bits) - 1)
    return values.sub_(offset).flatten(-2)
