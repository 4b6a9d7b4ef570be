"""What attention kernels get wrong about logits: scale, softcap, ALiBi, sinks."""

from __future__ import annotations

from typing import Final

import numpy as np

from opsocket_conformance.floats import round_to
from opsocket_conformance.power.broken import asks, fault, given, has, on_host, stages
from opsocket_conformance.power.host import truncated
from opsocket_conformance.power.plain_attention import Bools, Floats, Row, Stages, State

# ---- logits


def _held(self: Stages, row: Row) -> Bools:
    return np.broadcast_to(row.held, (len(row.query), len(row.key))).copy()


def _capped_after_mask(self: Stages, row: Row) -> Floats:
    return self.soften(np.where(Stages.visible(self, row), self.scaled(row), -np.inf)) + self.bias(row)


def _biased_from_the_first_key(self: Stages, row: Row) -> Floats:
    return np.broadcast_to(row.key[:1].sum() - row.key, (len(row.query), len(row.key)))


def _query_in_its_type(self: Stages, row: Row) -> Floats:
    product: Floats = round_to(row.q * self.work(self.spec.scale), self.spec.q_dtype) @ row.k.transpose(0, 2, 1)
    return product


def _dot_in_ten_bits(self: Stages, row: Row) -> Floats:
    """Products of factors with 10 stored bits, as TF32 has them."""
    q, k = (truncated(part.astype(np.float64), "f16").astype(np.float32) for part in (row.q, row.k))
    product: Floats = q @ k.transpose(0, 2, 1)
    return product


_SCORES: Final = (
    fault(
        "softcap ignored",
        "scores",
        "The softcap never reaches the kernel.",
        "cap=",
        request=asks(softcap=lambda s: None),
    ),
    fault(
        "softcap after the mask",
        "scores",
        "Masked logits of -inf go through tanh, and come back as -cap.",
        "cap=",
        where=has("softcap"),
        kernel=stages(scores=_capped_after_mask, visible=_held),
    ),
    fault(
        "softcap before the scale",
        "scores",
        "tanh is applied to q.k, and its result is scaled.",
        "cap=",
        where=has("softcap"),
        kernel=stages(scores=lambda s, row: s.soften(s.dot(row)) * s.work(s.spec.scale) + s.bias(row)),
    ),
    fault(
        "softcap not multiplied back",
        "scores",
        "tanh(s / cap) is left between -1 and 1.",
        "cap=",
        where=has("softcap"),
        kernel=stages(soften=lambda s, x: np.tanh(x / s.work(s.spec.softcap))),
    ),
    fault(
        "scale +1 %",
        "scores",
        "A constant of the scale has too few digits.",
        "x=peaky",
        request=asks(scale=lambda s: s.scale * 1.01),
    ),
    fault(
        "scale +0.5 %",
        "scores",
        "The scale is stored in bf16.",
        "x=peaky",
        request=asks(scale=lambda s: s.scale * 1.005),
    ),
    fault(
        "scale applied twice",
        "scores",
        "Both the query and the logits are scaled.",
        request=asks(scale=lambda s: s.scale**2),
    ),
    fault(
        "scale of 1/sqrt(D) assumed",
        "scores",
        "The request's scale is not read.",
        request=asks(scale=lambda s: s.head_dim_qk**-0.5),
    ),
    fault(
        "scale without its root",
        "scores",
        "1 / D instead of 1 / sqrt(D).",
        request=asks(scale=lambda s: s.scale * s.head_dim_qk**-0.5),
    ),
    fault(
        "query scaled in its own type",
        "precision",
        "q * scale is rounded to 16 bits before the product.",
        "q=bf16",
        "x=peaky",
        kernel=stages(scaled=_query_in_its_type),
    ),
    fault(
        "products of 10 bits",
        "precision",
        "f32 inputs go through TF32 units.",
        "q=f32",
        kernel=stages(dot=_dot_in_ten_bits),
    ),
    fault(
        "logits in bf16",
        "precision",
        "Logits pass through a bf16 tile.",
        "x=peaky",
        kernel=stages(scaled=lambda s, row: round_to(Stages.scaled(s, row), "bf16")),
    ),
    fault(
        "slopes ignored",
        "scores",
        "ALiBi's slopes never reach the kernel.",
        "alibi=1",
        run=given(alibi=on_host(np.zeros_like)),
    ),
    fault(
        "slope of the neighbour head",
        "scores",
        "Slopes are indexed from 1.",
        "alibi=1",
        run=given(alibi=on_host(lambda a: np.roll(a, 1))),
    ),
    fault(
        "ALiBi with the other sign",
        "scores",
        "The bias grows with the distance.",
        "alibi=1",
        run=given(alibi=on_host(np.negative)),
    ),
    fault(
        "ALiBi from the first key",
        "scores",
        "The bias counts from the row's start: a shift that only LSE and sinks see.",
        "alibi=1",
        "lse=1",
        where=has("alibi"),
        kernel=stages(distance=_biased_from_the_first_key),
    ),
    fault(
        "ALiBi inside the softcap",
        "scores",
        "The bias is added before tanh.",
        "alibi=1",
        "cap=",
        where=has("alibi"),
        kernel=stages(scores=lambda s, row: s.soften(s.scaled(row) + s.bias(row))),
    ),
    fault(
        "ALiBi scaled",
        "scores",
        "The bias is added before the scale.",
        "alibi=1",
        where=has("alibi"),
        kernel=stages(bias=lambda s, row: Stages.bias(s, row) * s.work(s.spec.scale)),
    ),
    fault(
        "ALiBi rewards keys ahead",
        "scores",
        "slope * (j - p) without the absolute value.",
        "alibi=1",
        "mask=full",
        where=has("alibi"),
        kernel=stages(distance=lambda s, row: row.query[:, None] - row.key[None, :]),
    ),
    fault(
        "slopes in bf16",
        "precision",
        "Slopes are kept in the activations' type.",
        "alibi=1",
        run=given(alibi=on_host(lambda a: round_to(a, "bf16"))),
    ),
)

# ---- sinks


def _sink_as_first_value(self: Stages, row: Row, state: State) -> tuple[Floats, Floats]:
    """The sink's weight meets the value of the first key."""
    sink = self.sink(row)
    if sink is not None:
        state = State(state.top, state.total, state.acc + self.exp(sink - state.top) * np.nan_to_num(row.v[:, :1]))
    return Stages.finish(self, row, state)


def _sink_in_each_part(self: Stages, row: Row) -> list[State]:
    scores, seen = self.scores(row), self.visible(row)
    return [self.part(row, scores, seen, keys, True) for keys in np.array_split(np.arange(len(row.key)), 2)]


def _sink_left_out_of_lse(self: Stages, row: Row) -> tuple[Floats, Floats]:
    out, _ = Stages.attend(self, row)
    row.operands.sinks, sinks = None, row.operands.sinks
    _, without = Stages.attend(self, row)
    row.operands.sinks = sinks
    return out, without


def _without_other_heads(sinks: Floats) -> Floats:
    return np.where(np.arange(len(sinks)) == 0, sinks, -np.inf).astype(np.float32)


_SINKS: Final = (
    fault(
        "sinks ignored",
        "softmax",
        "Sinks never reach the kernel.",
        "sinks=1",
        run=given(sinks=on_host(lambda a: np.full_like(a, -np.inf))),
    ),
    fault(
        "sink scaled",
        "softmax",
        "The sink is scaled like a logit.",
        "sinks=1",
        where=has("sinks"),
        kernel=stages(sink=lambda s, row: Stages.sink(s, row) * s.work(s.spec.scale)),
    ),
    fault(
        "sink capped",
        "softmax",
        "The sink goes through the softcap.",
        "sinks=1",
        "cap=",
        where=has("sinks"),
        kernel=stages(sink=lambda s, row: s.soften(Stages.sink(s, row))),
    ),
    fault(
        "sink in the numerator",
        "softmax",
        "The sink is taken for a key, whose value is the first one.",
        "sinks=1",
        where=has("sinks"),
        kernel=stages(finish=_sink_as_first_value),
    ),
    fault(
        "sink of the first head only",
        "softmax",
        "The sink is added by the thread that holds head 0.",
        "sinks=1",
        run=given(sinks=on_host(_without_other_heads)),
    ),
    fault(
        "sink of the first head for all",
        "softmax",
        "Sinks are indexed without the head.",
        "sinks=1",
        run=given(sinks=on_host(lambda a: np.full_like(a, a[0]))),
    ),
    fault(
        "sink twice in a split",
        "softmax",
        "Each KV split adds the sink.",
        "sinks=1",
        where=has("sinks"),
        kernel=stages(states=_sink_in_each_part),
    ),
    fault(
        "sink left out of the LSE",
        "softmax",
        "The LSE is taken before the sink joins.",
        "sinks=1",
        "lse=1",
        where=has("sinks"),
        kernel=stages(attend=_sink_left_out_of_lse),
    ),
)

FAULTS: Final = (*_SCORES, *_SINKS)
