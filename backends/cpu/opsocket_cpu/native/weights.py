"""Weights as the native kernels read them: made once, at load, and read back; no part of a step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from opsocket.operators import PackedWeight, Request, Session
from opsocket.quantization import (
    GroupedWeight,
    QuantFormat,
    WeightTensor,
    f8e4m3fn_to_f32,
    get_format,
    rows_join,
    rows_of,
)
from opsocket_cpu.native.packing import Rows, Unsigned, by_table, float_panels, pack, unsigned
from opsocket_cpu.native.panels import (
    E4M3FN,
    INTEGERS,
    LAYOUTS,
    PANEL,
    TABLES,
    CodedPanels,
    FloatPanels,
    planes_of,
    slab_of,
)


class OverPanels:
    """What plans whose weights are panels have in common; named before the operator's plan class."""

    weight_layouts = LAYOUTS

    @classmethod
    def prepare_weight(cls, session: Session, request: Request, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
        return prepare(session, request.spec, tensors)

    @classmethod
    def dequantize(cls, session: Session, packed: PackedWeight) -> torch.Tensor:
        return dequantize(packed)


def prepare(session: Session, spec: Any, tensors: Mapping[str, np.ndarray]) -> PackedWeight:
    """A weight of `spec.weight_format` in panels, validated by the format; owns its memory."""
    fmt = get_format(spec.weight_format)
    if fmt.is_float:
        fmt.validate(tensors, spec.n, spec.k)
        floats = FloatPanels(float_panels(tensors["weight"], fmt.id, session.threads, session.library), fmt.id)
        return PackedWeight(fmt.id, spec.n, spec.k, "panels", floats, floats.nbytes)
    permutation, rows = _rows_of(fmt, tensors, spec.n, spec.k)
    coded = pack(rows, spec.n, spec.k, fmt.group_size(spec.k), permutation, session.threads, session.library)
    return PackedWeight(fmt.id, spec.n, spec.k, "panels", coded, coded.nbytes)


def _rows_of(fmt: QuantFormat, tensors: Mapping[str, np.ndarray], n: int, k: int) -> tuple[np.ndarray | None, Rows]:
    """The order of a weight's columns, and its rows as they are packed: unpacked when they are, where they can be."""
    fmt.validate(tensors, n, k)

    def integers(grouped: GroupedWeight) -> Unsigned:
        return by_table(grouped, fmt.code) if fmt.code in TABLES else unsigned(grouped)

    if not fmt.has_integer_codes:
        floats = fmt.scale_floats(tensors, n, k)
        return None, lambda first, last: Unsigned(
            floats.codes[first:last], floats.scale[first:last], None, 8, 0, E4M3FN
        )
    if rows_join(fmt):
        whole = WeightTensor(fmt, n, k, tensors)
        return None, lambda first, last: integers(fmt.group(rows_of(whole, first, last).tensors, last - first, k))
    grouped = fmt.group(tensors, n, k)
    return grouped.input_permutation, lambda first, last: integers(grouped.rows(first, last))


def dequantize(packed: PackedWeight) -> torch.Tensor:
    """f32 [N, K], columns in their original order, rounded once per operation."""
    content: CodedPanels | FloatPanels = packed.content
    if isinstance(content, FloatPanels):
        values = content.data.float()
        if content.dtype == "bf16":
            values = values.transpose(2, 3).reshape(len(values), -1, PANEL)
        return values.transpose(1, 2).reshape(-1, values.shape[1])[: packed.n, : packed.k].contiguous()
    codes, scale, minimum = unpack(content)
    values = _numbers(content.facts.code, codes).reshape(len(codes), -1, content.facts.group) * scale[:, :, None]
    if minimum is not None:
        values -= minimum[:, :, None]
    in_order = torch.from_numpy(values.reshape(len(codes), -1)[: packed.n, : packed.k].copy())
    if content.permutation is None:
        return in_order
    return torch.empty_like(in_order).index_copy_(1, content.permutation, in_order)


def unpack(content: CodedPanels) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """codes i16 [N, K] less their offset, scale f32 [N, groups], minimum or None; n and k with their padding."""
    facts = content.facts
    slab, panels = slab_of(facts.group), -(-facts.n // PANEL)
    groups, slabs, kinds = facts.k // facts.group, facts.group // slab, 2 if facts.has_minimum else 1
    coded = slabs * slab * PANEL * facts.bits // 8
    data = content.data.numpy()
    if facts.super:
        in_block = facts.super // facts.group
        blocks = data.reshape(panels, facts.k // facts.super, -1)
        units = blocks[:, :, : kinds * PANEL * 2].reshape(panels, -1, kinds, PANEL * 2)
        multiples = blocks[:, :, kinds * PANEL * 2 : kinds * PANEL * (2 + in_block)].view(np.int8)
        rows = blocks[:, :, kinds * PANEL * (2 + in_block) :].reshape(panels, groups, coded)
        of_groups = np.repeat(np.ascontiguousarray(units).view(np.float16).astype(np.float32), in_block, axis=1)
        scales = of_groups * multiples.reshape(panels, groups, kinds, PANEL)
    else:
        rows = data.reshape(panels, groups, -1)
        kind = np.float32 if facts.scale_f32 else np.float16
        scales = np.ascontiguousarray(rows[:, :, coded:]).view(kind).astype(np.float32)
        scales = scales.reshape(panels, groups, kinds, PANEL)
    scales = scales.transpose(2, 0, 3, 1).reshape(kinds, panels * PANEL, groups)
    codes, first = np.zeros((panels, groups, slabs, slab // 4, PANEL, 4), np.uint8), 0
    of_slabs = rows[:, :, :coded].reshape(panels, groups, slabs, -1)
    for bits, place in planes_of(facts.bits):
        fields, size = 8 // bits, slab * PANEL * bits // 8
        packed = of_slabs[..., first : first + size].reshape(panels, groups, slabs, 1, -1, PANEL, 4)
        shifts = (np.arange(fields) * bits).astype(np.uint8).reshape(1, 1, 1, -1, 1, 1, 1)
        codes |= ((packed >> shifts & np.uint8((1 << bits) - 1)) << np.uint8(place)).reshape(codes.shape)
        first += size
    in_order = codes.transpose(0, 4, 1, 2, 3, 5).reshape(panels * PANEL, facts.k).astype(np.int16)
    offset = facts.zero_offset if facts.code == INTEGERS else 0
    return in_order - np.int16(offset), scales[0], scales[1] if facts.has_minimum else None


def _numbers(code: int, codes: np.ndarray) -> np.ndarray:
    """f32 of integers, or of what their bits or places stand for; twice an e2m1."""
    if code == E4M3FN:
        return f8e4m3fn_to_f32(codes.astype(np.uint8))
    integers = {looked_up: integers for looked_up, integers, _ in TABLES.values()}.get(code)
    return (codes if integers is None else integers[codes]).astype(np.float32)
