"""The cases of attention: a family per profile, and every pair of knobs together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from opsocket_conformance.case import Case, Tier
from opsocket_conformance.cover import Choice, cover
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.laws import LAWS, AttentionLaw

HEADS: Final = ((14, 2), (9, 3), (5, 5), (7, 1))
BATCHES: Final = (
    "decode", "tail", "edges", "prefill", "chunk", "mixed", "short", "verify", "shared", "shifted",
)  # fmt: skip
SHAPES: Final = ("normal", "flat", "peaky", "large", "offset", "onehot", "needle", "cancel")
INT8: Final = ("i8.token_head", "i8.channel", "i8.token_head.f16", "i8.head", "i8.tensor")
INT4: Final = ("i4.token_head", "i4.token_head.f16", "i4.channel")
UNPINNED: Final = ("i8.token_head.f32.zero", "i4.channel.f32.zero")
FP8: Final = ("f8e4m3fn", "f8e4m3fn.tensor", "f8e4m3fn.head", "f8e4m3fn.token_head", "f8e5m2")

KNOBS: Final[Mapping[str, Sequence[Any]]] = {
    "q": DTYPES,
    "kv": (
        "",
        "i8.token_head",
        "i8.channel",
        "i4.token_head",
        "f8e4m3fn",
        "f8e4m3fn.tensor",
        "i8.channel+i4.token_head",
    ),
    "heads": HEADS,
    "d": (64, 80, 96, 128, 256, 88),
    "bs": (16, 0, 1, 128),
    "batch": BATCHES,
    "x": (*SHAPES, "saturate"),
    "mask": ("causal", "full", "tree"),
    "left": (None, 0, 7, 40),
    "right": (None, 0, 5),
    "cap": (None, 5.0, 30.0),
    "alibi": (False, True),
    "sinks": (False, True),
    "lse": (False, True),
    "prob": ("f32", "bf16"),
    "out": ("", "f32"),
    "strided": (False, True),
    "fresh": (False, True),
}
"""All that the default tier pairs with each other; the coverage that reports print is over these."""

TRIPLED: Final = ("q", "kv", "heads", "bs", "mask", "batch")
"""Those that pick a kernel: the default tier has every triple of them."""

_TREES = ("tail", "edges", "prefill", "verify", "shared", "chunk")


def feasible(choice: Choice) -> bool:
    """Whether the interface defines the combination, as far as it is filled in."""

    def has(knob: str, *values: Any) -> bool:
        return knob in choice and choice[knob] in values

    if has("mask", "tree") and "batch" in choice and choice["batch"] not in _TREES:
        return False
    if has("bs", 0) and (choice.get("kv") or has("batch", "shared")):
        return False
    return not (has("right", 0, 5) and "mask" in choice and choice["mask"] != "full")


def cases() -> Iterator[Case]:
    yield from _smoke()
    yield from _decoder()
    yield from _profiles()
    yield from _alone()
    yield from _fast()
    yield from _laws()
    yield from _combined()
    yield from _permitted()
    yield from _permitted_alone()
    yield from _probes()


def _attention(tier: Tier, choice: Choice, draw: int = 0) -> Case:
    fields = dict(choice)
    if "heads" in fields:
        fields["hq"], fields["hkv"] = fields.pop("heads")
    return Case(Attention(**fields), draw, tier)


def _every(tier: Tier, **knobs: Sequence[Any]) -> Iterator[Case]:
    """Every pair of values of these knobs, in few cases."""
    for choice in cover(knobs, feasible):
        yield _attention(tier, choice)


def _smoke() -> Iterator[Case]:
    """What a first plugin should get right first."""
    for q in DTYPES:
        for batch, x in (
            ("decode", "normal"),
            ("tail", "onehot"),
            ("prefill", "normal"),
            ("chunk", "peaky"),
            ("mixed", "needle"),
            ("short", "flat"),
            ("edges", "onehot"),
            ("verify", "large"),
        ):
            yield Case(Attention(q=q, batch=batch, x=x, d=128 if x == "peaky" else 64), 0, "smoke")
        yield Case(Attention(9, 3, q=q, batch="mixed", x="offset", strided=True, fresh=True), 0, "smoke")
        for kv in (INT8[0], INT8[1], INT4[0], FP8[0]):
            yield Case(Attention(q=q, kv=kv), 0, "smoke")
        yield Case(Attention(q=q, batch="chunk", x="needle", left=7), 0, "smoke")
        yield Case(Attention(q=q, batch="edges", left=16), 0, "smoke")
        yield Case(Attention(q=q, batch="verify", mask="tree"), 0, "smoke")
        yield Case(Attention(q=q, batch="mixed", lse=True), 0, "smoke")
        yield Case(Attention(q=q, batch="needle", x="needle"), 0, "smoke")
        yield Case(Attention(9, 3, q=q, bs=0, batch="chunk", cap=30.0, x="saturate"), 0, "smoke")
        yield Case(Attention(9, 3, q=q, batch="chunk", alibi=True, sinks=True, lse=True), 0, "smoke")


def _decoder() -> Iterator[Case]:
    """The minimum, in each type: plain causal attention over pages of 16."""
    for q in DTYPES:
        yield from _every(
            "default", q=(q,), heads=HEADS, d=(64, 128), batch=BATCHES, x=SHAPES, strided=(False, True),
            fresh=(False, True),
        )  # fmt: skip
        yield Case(Attention(q=q, batch="none"))
        for batch in ("wide", "long"):
            yield from _every("default", q=(q,), heads=HEADS[:2], batch=(batch,), x=("normal", "peaky", "onehot"))
        for draw in range(1, 4):
            yield from (_attention("full", {"q": q, "batch": batch}, draw) for batch in BATCHES)
        for prob in ("bf16", "f16"):
            yield from _every("default", q=(q,), prob=(prob,), batch=("decode", "wide"), x=("normal", "flat", "cancel"))
    yield from (_attention("default", {"q": q, "x": "denormal", "batch": "mixed"}) for q in DTYPES)


def _profiles() -> Iterator[Case]:
    """The other profiles, one family each, in every type."""
    for q in DTYPES:
        for formats in (INT8, INT4, FP8):
            for kv in formats:
                yield from _every(
                    "default", q=(q,), kv=(kv,), heads=HEADS[:2], d=(64, 128), batch=("decode", "chunk", "edges"),
                    x=("normal", "peaky", "needle"),
                )  # fmt: skip
        yield from _every(
            "default", q=(q,), left=(0, 7, 15, 16, 40, 4096), heads=HEADS[:2],
            batch=("decode", "edges", "prefill", "chunk", "mixed", "short", "shifted", "wide"),
            x=("normal", "onehot", "needle", "flat"),
        )  # fmt: skip
        yield from _every(
            "default", q=(q,), mask=("tree",), heads=HEADS[:2], batch=("verify", "prefill", "tail"),
            x=("normal", "onehot", "needle", "peaky"),
        )  # fmt: skip
        yield from _every(
            "default", q=(q,), lse=(True,), heads=HEADS[:2], batch=("decode", "mixed", "short", "chunk", "shared"),
            x=("normal", "large", "offset", "peaky", "flat"),
        )  # fmt: skip
        yield from _every(
            "default", q=(q,), heads=HEADS[:3], d=(192, 256, 512), bs=(16, 0, 128), batch=("decode", "chunk", "mixed"),
            x=("normal", "peaky", "needle"),
        )  # fmt: skip
        yield from _every("default", q=(q,), batch=("needle",), heads=HEADS[:2], x=("needle", "flat", "onehot"))
        yield from _every("default", q=(q,), batch=("longest",), heads=HEADS[3:], x=("needle", "flat"))


def _alone() -> Iterator[Case]:
    """Each knob that carries numbers, alone and on inputs that earn it credit: in combinations others drown it."""
    for q in DTYPES:
        for batch in ("decode", "chunk", "prefill", "edges"):
            yield Case(Attention(q=q, batch=batch, alibi=True))
            yield Case(Attention(q=q, batch=batch, alibi=True, x="flat", bs=0))
            yield Case(Attention(q=q, batch=batch, sinks=True, x="flat"))
            yield Case(Attention(9, 3, q=q, batch=batch, sinks=True))
            yield Case(Attention(q=q, batch=batch, cap=5.0))
            yield Case(Attention(9, 3, q=q, batch=batch, cap=30.0, x="saturate"))


def _fast() -> Iterator[Case]:
    """With the permissions that vendors' fused kernels need, and which an engine's fast numerics give: these kernels
    are not asked otherwise. Over pages of 128, which all of them read."""
    for q in ("bf16", "f16"):
        fast: dict[str, Any] = {"q": q, "prob": q, "exp": "approx", "acc": "f32_truncating", "deq": q, "bs": 128}
        for batch in (*BATCHES, "wide", "long"):
            is_first = q == "bf16" and batch in ("decode", "chunk", "mixed")
            yield _attention("smoke" if is_first else "default", {**fast, "batch": batch})
        yield _attention("smoke", {**fast, "batch": "mixed", "lse": True, "d": 128, "heads": HEADS[3]})
        yield _attention("smoke" if q == "bf16" else "default", {**fast, "batch": "decode", "kv": INT8[0]})
        yield _attention("default", {**fast, "batch": "chunk", "x": "needle", "left": 40})
        yield _attention("default", {**fast, "batch": "chunk", "x": "peaky", "mask": "full"})


def _laws() -> Iterator[Case]:
    batches = {
        "chunked": ("prefill", "wide", "verify"),
        "decoded": ("verify", "prefill"),
        "split_merge": ("decode", "chunk", "shared", "long"),
    }
    for law in LAWS:
        for q in DTYPES:
            for batch in batches.get(law, ("decode", "chunk", "long")):
                yield Case(
                    AttentionLaw(q=q, batch=batch, law=law), 0, "smoke" if batch in ("verify", "chunk") else "default"
                )
    for kv in ("i8.token_head", "i8.channel", "i4.token_head", "f8e4m3fn"):
        for law in ("permuted_pages", "moved_cache", "split_merge"):
            yield Case(AttentionLaw(9, 3, kv=kv, batch="chunk", law=law))
    yield Case(AttentionLaw(9, 3, batch="chunk", sinks=True, law="split_merge"))
    yield Case(AttentionLaw(9, 3, batch="chunk", alibi=True, left=20, law="split_merge"))
    yield Case(AttentionLaw(9, 3, batch="edges", left=20, cap=20.0, law="permuted_pages"))


def _combined() -> Iterator[Case]:
    """Every pair of all knobs, and every triple of those that pick a kernel."""
    for choice in cover(KNOBS, feasible):
        yield _attention("default", choice)
    for choice in cover({name: KNOBS[name] for name in TRIPLED}, feasible, strength=3):
        yield _attention("default", choice)


def _permitted() -> Iterator[Case]:
    """All at once that `Numerics` permits in the type of q, over pages of 128: what an engine asks of matrix units, and
    kernels with fixed pages and limits of their own take."""
    for q in ("bf16", "f16"):
        permitted = {"q": q, "prob": q, "exp": "approx", "tanh": "approx", "acc": "f32_truncating", "deq": q, "bs": 128}
        batches = (*BATCHES, "wide", "long")
        for choice in cover({"batch": batches, "heads": HEADS[:2], "d": (64, 128), "x": ("normal", "peaky", "onehot")}):
            yield _attention("default", choice | permitted)
        for batch in ("decode", "mixed", "short", "verify"):
            yield _attention("default", {"batch": batch, "lse": True} | permitted)
            yield _attention("default", {"batch": batch, "mask": "full"} | permitted)
            yield _attention("default", {"batch": batch, "kv": "i8.token_head"} | permitted)
            yield _attention("default", {"batch": batch, "sinks": True, "snk": q} | permitted)
        for left in (0, 7, 200):
            for batch in ("decode", "chunk", "short", "long"):
                yield _attention("default", {"batch": batch, "left": left, "x": "needle"} | permitted)
        for batch in ("decode", "prefill", "verify", "long"):
            latent = {"hq": 16, "hkv": 1, "d": 576, "dv": 512, "latent": True}
            yield _attention("default", {"batch": batch, "lse": True} | latent | permitted)


def _permitted_alone() -> Iterator[Case]:
    """The same for what backends have other kernels or tiles for: head sizes, formats of a cache, masks, functions."""
    for q in ("bf16", "f16"):
        fast: dict[str, Any] = {"q": q, "prob": q, "exp": "approx", "tanh": "approx", "acc": "f32_truncating", "deq": q}
        fixed = {name: (value,) for name, value in fast.items()}
        for batch in ("decode", "prefill"):
            yield Case(Attention(9, 3, batch=batch, **fast), 0, "smoke")
        yield from _every(
            "default", **fixed, heads=HEADS[:3], d=(64, 128, 256, 80), bs=(16, 0),
            batch=("decode", "chunk", "mixed", "long"), x=("normal", "peaky", "needle"),
        )  # fmt: skip
        yield from _every(
            "default", **fixed, heads=HEADS[:2], d=(64, 128), kv=(*INT8[:2], INT4[0], *FP8[:2], FP8[4]),
            batch=("decode", "chunk"), x=("normal", "peaky"),
        )  # fmt: skip
        knobs: tuple[dict[str, Any], ...] = (
            {"mask": "tree", "batch": "verify"}, {"mask": "full", "right": 5}, {"alibi": True}, {"cap": 5.0},
            {"strided": True, "out": "f32"},
        )  # fmt: skip
        for knob in knobs:
            yield from (Case(Attention(**{"d": d, "batch": "chunk", **knob, **fast})) for d in (64, 128))
        yield Case(Attention(16, 1, d=576, dv=512, latent=True, kv=FP8[0], batch="chunk", **fast))


def _probes() -> Iterator[Case]:
    """Requests outside every profile: to be served right, or refused with the reasons that `supports` gives."""
    for d, dv in ((576, 512), (192, 128), (40, 0), (512, 0), (72, 0), (65, 0), (1, 0)):
        yield Case(Attention(4, 1, d=d, dv=dv))
    for kv in ("i2.token_head", "f8e4m3fnuz", "f8e5m2.tensor", "f16", "f32", "i8.token_head+f8e4m3fn", "i4.head"):
        yield Case(Attention(kv=kv))
    for numerics in ({"exp": "approx"}, {"tanh": "approx", "cap": 20.0}, {"prob": "f16"}):
        yield Case(Attention(**numerics))
    for q in ("bf16", "f16"):
        for step in (1, 16):
            yield Case(Attention(q=q, batch="chunk", acc="f32_truncating", step=step))
        for kv in (INT8[0], INT4[0], FP8[0]):
            yield Case(Attention(q=q, kv=kv, batch="chunk", deq=q))
    yield Case(Attention(exact=False))
    for kv in UNPINNED:  # every backend denies these: that denials are looked at has to show somewhere
        yield from (Case(Attention(q=q, kv=kv)) for q in DTYPES)
    yield Case(Attention(64, 8, batch="mixed"))
    yield Case(Attention(13, 13, batch="mixed"))
    yield from (Case(Attention(bs=bs, batch="chunk")) for bs in (2, 24, 64, 256))
    yield from (Case(Attention(layout=1, batch=batch)) for batch in ("decode", "chunk", "prefill"))
