"""Rows of a weight as floats, and what every plan over weights has in common."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
import triton
import triton.language as tl

from opsocket.operators import PackedWeight, Request, Session
from opsocket_triton.functions import float_of_field
from opsocket_triton.launch import launch
from opsocket_triton.matmul import weights
from opsocket_triton.matmul.sums import column_of


@triton.jit
def gather_rows(
    ids, stored, scale, minimum, permutation, out, w_row, scale_row, out_row, k, width,
    BITS: tl.constexpr, OFFSET: tl.constexpr, GROUP: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """out[t, :] = row ids[t] of a table, in f32, rounded once; t = program 0, BLOCK stored elements by program 1.

    ids: i64 [T], None: 0, 1, 2 and so on. BITS 0: the table holds floats. Reads each byte once and writes each result
    once; limited by memory.
    """
    FIELDS: tl.constexpr = 1 if BITS == 0 else 8 // BITS
    token = tl.program_id(0).to(tl.int64)
    n = token if ids is None else tl.load(ids + token)
    at = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = at < width
    tile = tl.load(stored + n * w_row + at, mask=inside, other=0)
    for field in tl.static_range(FIELDS):
        column = column_of(at, field, FIELDS)
        wanted = inside & (column < k)
        if BITS == 0:
            value = tile.to(tl.float32)
        else:
            if GROUP == 0:
                group = column * 0
            else:
                group = column // GROUP
            place = group.to(tl.int64) * scale_row + n
            s = tl.load(scale + place, mask=wanted, other=0).to(tl.float32)
            value = float_of_field(tile, field, BITS, OFFSET) * s
            if minimum is not None:
                m = tl.load(minimum + place, mask=wanted, other=0).to(tl.float32)
                value -= m * s if minimum.dtype.element_ty == tl.int8 else m
        if permutation is not None:
            column = tl.load(permutation + column, mask=wanted, other=0)
        tl.store(out + token * out_row + column, value.to(out.dtype.element_ty), mask=wanted)


def gather(content: weights.Weight, k: int, ids: torch.Tensor | None, out: torch.Tensor) -> torch.Tensor:
    """Rows `ids` of a weight, or all of them, into out [T, K]."""
    block = 512
    launch(
        gather_rows,
        (out.shape[0], triton.cdiv(content.width, block)),
        ids=ids,
        permutation=content.permutation,
        out=out,
        out_row=out.stride(0),
        BLOCK=block,
        k=k,
        **weights.arguments(content),
    )
    return out


class OverWeights:
    """What plans over weights have in common; named before the operator's plan class."""

    weight_layouts = weights.LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return weights.prepare(session, request, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        """By the kernel that reads rows, so that what it makes of codes is what is compared."""
        out: torch.Tensor = session.empty((packed.n, packed.k), "f32")
        return gather(packed.content, packed.k, None, out)
