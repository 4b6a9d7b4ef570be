"""What a backend says of itself, and should not: claims, denials, names, receipts, and whose work it hands in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np

from opsocket.operators import Reason, Request, Support, Unsupported
from opsocket.quantization import get_format
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators.attention import oracle
from opsocket_conformance.power.broken import given, on_host, stages
from opsocket_conformance.power.fault import Category, Fault
from opsocket_conformance.power.plain_attention import Floats, Row, Stages

_OPERATORS: Final = ("attention", "cache_write", "matmul")
_DENYING: Final = ("attention", "cache_write")
"""Operators of which the suite asks something that every backend denies."""

_NO: Final = (Reason("head_dim", "head_dim_qk", 0, "another"),)
_OTHER: Final = (Reason("other", "something", "else", "than what supports says"),)


def _each(name: str, category: Category, wrong: str, *operators: str, **hooks: Any) -> tuple[Fault, ...]:
    """The same fault in several operators."""
    return tuple(
        Fault(op, name=f"{op}: {name}", category=category, wrong=wrong, **hooks) for op in operators or _OPERATORS
    )


def _planned_as(reasons: tuple[Reason, ...]) -> Callable[..., Any]:
    """plan: a denial for these reasons, where the session denies."""

    def plan(session: Any, request: Request, batch: Any) -> Any:
        try:
            return session.right.plan(request, batch)
        except Unsupported:
            raise Unsupported(reasons) from None

    return plan


def _refused(session: Any, request: Request, batch: Any) -> Any:
    raise Unsupported(_NO)


_CLAIMS: Final = (
    *_each(
        "claimed, and plan refuses",
        "claims",
        "supports forgets a restriction that plan knows.",
        session={"plan": _refused},
    ),
    *_each(
        "claims what it refuses",
        "claims",
        "supports says yes to everything.",
        *_DENYING,
        supports=lambda right: right or Support("native", "any"),
        telling=(".zero",),
    ),
    *_each(
        "denied, and plan works",
        "claims",
        "supports has a list that nobody keeps up to date.",
        supports=lambda right: Support("none", reasons=_NO),
    ),
    *_each(
        "denied without a reason",
        "claims",
        "supports says no, and that is all.",
        *_DENYING,
        supports=lambda right: right or Support("none"),
        telling=(".zero",),
    ),
    *_each(
        "denied for other reasons",
        "claims",
        "supports and plan find reasons each in their own way.",
        *_DENYING,
        session={"plan": _planned_as(_OTHER)},
        telling=(".zero",),
    ),
    *_each(
        "another provider than named",
        "claims",
        "supports names the provider that was asked for, not the one taken.",
        supports=lambda right: replace(right, provider="the other one"),
    ),
    *_each(
        "silent fallback",
        "execution",
        "Another provider does the work, and says so in its receipt only.",
        provider="fallback",
    ),
    *_each("no receipt", "execution", "The kernel does not report itself.", reports=False),
)


# ---- work of others


def _asks_the_oracle(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    result = plan.right(*args, **kwargs)
    spec = plan.request.spec
    q = plan.session.download(args[0] if args else kwargs["q"]).astype(np.float64)
    none = [np.zeros((int(n), spec.num_kv_heads, spec.head_dim_qk)) for n in plan.batch.kv_lens]
    oracle.attention(oracle.Problem(spec, plan.batch, q, none, none))
    return result


def _remembers_the_tensors(session: Any, request: Request, tensors: Any) -> Any:
    packed = session.right.prepare_weight(request, tensors)
    session.state["tensors"] = dict(tensors)
    return packed


def _by_the_reference(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The weight is dequantized by core's own float64 reference."""
    result = plan.right(*args, **kwargs)
    spec, tensors = plan.request.spec, plan.owner.state.get("tensors")
    if tensors is not None:
        get_format(spec.weight_format).reference(tensors, spec.n, spec.k)
    return result


def _by_another_backend(plan: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A session of a backend of another name does the work, on the same device."""
    session = plan.session
    kind = type(session.backend)
    other = type("Other", (kind,), {"info": replace(kind.info, name="another")})()
    with other.open(session.device, session.options) as helper:
        helper.plan(plan.request, plan.batch).run(*args, **kwargs)
    return plan.right(*args, **kwargs)


_BORROWED: Final = (
    Fault(
        "attention",
        name="attention: the oracle's answer",
        category="execution",
        run=_asks_the_oracle,
        wrong="The kernel asks the suite's own reference.",
    ),
    Fault(
        "matmul",
        name="matmul: core's reference dequantizer",
        category="execution",
        run=_by_the_reference,
        session={"prepare_weight": _remembers_the_tensors},
        wrong="The kernel calls the reference that it is to be compared with.",
    ),
    Fault(
        "attention",
        name="attention: another backend's answer",
        category="execution",
        run=_by_another_backend,
        wrong="The kernel opens another backend and reports itself.",
    ),
)

# ---- served, but as something else


def _head_size(wrong: Callable[[int], bool]) -> Callable[[Request], bool]:
    def where(request: Request) -> bool:
        spec: Any = request.spec
        return wrong(spec.head_dim_qk)

    return where


def _in(dtype: str) -> Callable[[Request], bool]:
    return lambda request: getattr(request.spec, "q_dtype", "") == dtype


def _first_channels(self: Stages, row: Row) -> Floats:
    product: Floats = row.q[..., :128] @ row.k[..., :128].transpose(0, 2, 1)
    return product


def _in_chunks_of_64(self: Stages, row: Row) -> Floats:
    """Head sizes that are no multiple of 64 lose their tail."""
    width = max(row.q.shape[-1] // 64 * 64, 1)
    product: Floats = row.q[..., :width] @ row.k[..., :width].transpose(0, 2, 1)
    return product


_SERVED: Final = (
    Fault(
        "attention",
        name="attention: f32 served in bf16",
        category="claims",
        where=_in("f32"),
        telling=("q=f32",),
        run=given(q=on_host(lambda q: round_to(q, "bf16"))),
        wrong="f32 is claimed, and converted to bf16.",
    ),
    Fault(
        "attention",
        name="attention: f16 served in bf16",
        category="claims",
        where=_in("f16"),
        telling=("q=f16",),
        run=given(q=on_host(lambda q: round_to(q, "bf16"))),
        wrong="f16 is claimed, and converted to bf16.",
    ),
    Fault(
        "attention",
        name="attention: head size 256 served by 128",
        category="claims",
        telling=("d=256",),
        where=_head_size(lambda d: d > 128),
        kernel=stages(dot=_first_channels),
        wrong="A kernel for head size 128 gets larger ones.",
    ),
    Fault(
        "attention",
        name="attention: head sizes in chunks of 64",
        category="claims",
        telling=("d=80", "d=96", "d=88"),
        where=_head_size(lambda d: d % 64 != 0),
        kernel=stages(dot=_in_chunks_of_64),
        wrong="Channels past the last multiple of 64 are not read.",
    ),
)

# ---- caches that are not what was asked for


def _other_blocks(session: Any, cache: Any, *args: Any, **kwargs: Any) -> Any:
    made = session.right.allocate_cache(cache, *args, **kwargs)
    return replace(made, spec=replace(made.spec, num_blocks=made.spec.num_blocks + 1))


def _another_layout(session: Any, cache: Any, *args: Any, **kwargs: Any) -> Any:
    made = session.right.allocate_cache(cache, *args, **kwargs)
    return replace(made, layout=replace(made.layout, id="another"))


_CACHES: Final = (
    Fault(
        "cache_write",
        name="cache_write: no layout for what is claimed",
        category="claims",
        session={"cache_layouts": lambda session, cache: ()},
        wrong="cache_layouts knows fewer formats than supports.",
    ),
    Fault(
        "cache_write",
        name="cache_write: cache of another size",
        category="claims",
        session={"allocate_cache": _other_blocks},
        wrong="allocate_cache rounds up, and says so.",
    ),
    Fault(
        "cache_write",
        name="cache_write: cache in another layout",
        category="claims",
        session={"allocate_cache": _another_layout},
        wrong="allocate_cache takes the layout that it likes.",
    ),
)

FAULTS: Final = (*_CLAIMS, *_BORROWED, *_SERVED, *_CACHES)
