"""What goes wrong in products with a weight, in table lookups, and in the quantizer of activations."""

from __future__ import annotations

import itertools
from typing import Any, Final

import numpy as np

from opsocket.operators import Request
from opsocket_conformance.power.fault import Fault, Hook
from opsocket_conformance.power.host import (
    Float64,
    on_host,
    partly_written,
    read_as_dense,
    recomputed,
    rounded,
    truncated,
)
from opsocket_conformance.power.int8 import REMEMBERED, Step, activation_of, factors, quantize


def _same(value: Any, *others: Any) -> Any:
    return value


# ---- the quantizer of activations


def _away_from_zero(x: Float64) -> Float64:
    return np.asarray(np.trunc(x + np.copysign(0.5, x)))


_ACTIVATIONS: Final[tuple[tuple[str, str, dict[str, Any]], ...]] = (
    (
        "one scale for all rows",
        "amax of the whole matrix",
        {"size": lambda x: np.broadcast_to(np.abs(x).max(initial=0.0), (len(x), 1))},
    ),
    (
        "scale by the largest value",
        "max without abs",
        {"size": lambda x: np.maximum(x.max(axis=-1, keepdims=True, initial=0.0), 0.0)},
    ),
    (
        "scale of the first 128 columns",
        "a block's amax instead of the row's",
        {"size": lambda x: np.abs(x[:, :128]).max(axis=-1, keepdims=True, initial=0.0)},
    ),
    ("amax / 128", "the range of two's complement", {"scale": lambda size: size / np.float32(128)}),
    ("scale in f16", "as ggml's q8_0 has it", {"scale": lambda size: (size / np.float32(127)).astype(np.float16)}),
    ("scale in bf16", "in the activations' type", {"scale": lambda size: rounded(size / np.float32(127), "bf16")}),
    ("scale 0.5 % larger", "a margin against saturation", {"scale": lambda size: size * np.float32(1.005 / 127)}),
    (
        "scale plus 1e-5",
        "a guard against division by zero",
        {"scale": lambda size: size / np.float32(127) + np.float32(1e-5)},
    ),
    ("codes truncated", "a conversion that cuts off", {"to_code": np.trunc}),
    ("ties away from zero", "rounded as C's round does", {"to_code": _away_from_zero}),
    ("half up", "floor(x + 1/2)", {"to_code": lambda x: np.floor(x + 0.5)}),
    (
        "codes down to -128",
        "the range of two's complement, and a scale for its middle",
        {"scale": lambda size: size / np.float32(127.5), "lowest": -128.0},
    ),
    ("zero rows divided by zero", "codes of NaN", {"zero": 127.0}),
)


def _activation_faults() -> list[Fault]:
    """Each fault of the quantizer, alone and inside a product."""

    def alone(steps: dict[str, Any]) -> Hook:
        def compute(plan: Any, x: Float64) -> tuple[Any, Any]:
            codes, scale = quantize(x, **steps)
            return codes.astype(np.int8), scale[:, 0]

        return recomputed(compute)

    faults = []
    for name, wrong, steps in _ACTIVATIONS:
        faults.append(
            Fault(
                "quantize_activation",
                name=f"quantize_activation: {name}",
                category="quantization",
                wrong=wrong,
                run=alone(steps),
            )
        )
        if name != "zero rows divided by zero":
            quantized = product(quantize=lambda x, steps=steps: quantize(x, **steps))
            faults.append(
                Fault(
                    "matmul",
                    name=f"matmul: activations: {name}",
                    category="quantization",
                    wrong=wrong,
                    run=quantized,
                    where=_int8_activations,
                    telling=("a8",),
                    session=REMEMBERED,
                )
            )
    return faults


def _int8_activations(request: Request) -> bool:
    return activation_of(request) != "none"


def _float_activations(request: Request) -> bool:
    return not _int8_activations(request)


# ---- matmul


def _plus_bias(y: Float64, bias: Float64 | None, *others: Any) -> Float64:
    return y if bias is None else y + bias


def product(
    *,
    quantize: Step = quantize,
    given: Step = _same,
    weight: Step = _same,
    multiply: Step = lambda x, w: x @ w.T,
    add: Step = _plus_bias,
    store: Step = _same,
) -> Hook:
    """The right product in float64, each step of which can be replaced: from the backend's own weight, or with int8
    activations from what that was made of (`REMEMBERED`)."""

    def compute(plan: Any, x: Float64, packed: Any, bias: Float64 | None = None) -> Float64:
        spec = plan.request.spec
        if _int8_activations(plan.request):
            y = multiply(*factors(plan, x, packed, quantize))
        else:
            w = on_host(plan.session, plan.dequantize(plan.session, packed))
            y = multiply(given(x), weight(w))
        return np.asarray(store(add(y, bias, spec), spec.out_dtype))

    return recomputed(compute)


def _chained(dtype: str, chunk: int = 16) -> Step:
    """Sums kept in `dtype`, chunk by chunk of K."""

    def multiply(x: Float64, w: Float64) -> Float64:
        total = np.zeros((len(x), len(w)))
        for start in range(0, x.shape[1], chunk):
            columns = slice(start, start + chunk)
            total = rounded(total + x[:, columns] @ w[:, columns].T, dtype)
        return total

    return multiply


def _only(rows: Step, broken: Step) -> Step:
    """A product that is broken where `rows(x)` says so."""
    return lambda x, w: broken(x, w) if rows(x) else x @ w.T


def _to_tf32(values: Float64) -> Float64:
    bits = values.astype(np.float32).view(np.uint32)
    nearest = (bits + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1))) & np.uint32(0xFFFFE000)
    return nearest.view(np.float32).astype(np.float64)


def _by_columns(group: int) -> Step:
    """Activations as int8 codes, a scale for each group of columns, as ggml computes."""

    def given(x: Float64) -> Float64:
        if x.shape[1] % group:
            return x
        codes, scale = quantize(x.reshape(-1, group))
        return np.asarray((codes * scale).reshape(x.shape))

    return given


def _transposed(x: Float64, w: Float64) -> Float64:
    return x @ (w if w.shape[0] == w.shape[1] else w.T)


def _fault(name: str, wrong: str, run: Hook, where: Any = _float_activations) -> Fault:
    return Fault(
        "matmul",
        name=f"matmul: {name}",
        category="matmul",
        wrong=wrong,
        run=run,
        where=where,
        telling=_telling(where),
        session=REMEMBERED,
    )


def _telling(where: Any) -> tuple[str, ...]:
    return {_int8_activations: ("a8",), _biased: ("bias",)}.get(where, ())


def _any(request: Request) -> bool:
    return True


def _biased(request: Request) -> bool:
    return bool(getattr(request.spec, "bias", False))


def _through(dtype: str) -> Step:
    return lambda values, *others: rounded(values, dtype)


_MATMUL: Final = (
    _fault("sums in bf16", "the accumulator in the activations' type", product(multiply=_chained("bf16"))),
    _fault("sums in f16", "half-precision accumulators", product(multiply=_chained("f16"))),
    _fault(
        "sums in f16, one for each 128 columns",
        "a partial sum handed on in f16",
        product(multiply=_chained("f16", 128)),
    ),
    _fault("weights in bf16", "dequantized to bf16 before the product", product(weight=_through("bf16"))),
    _fault("weights in f16", "dequantized to f16 before the product", product(weight=_through("f16"))),
    _fault("weights in f8", "two digits", product(weight=lambda w: truncated(w, "bf16"))),
    _fault("activations in bf16", "rounded before the product", product(given=_through("bf16"))),
    _fault("activations in f16", "rounded before the product", product(given=_through("f16"))),
    _fault("products in tf32", "the matrix unit's short type", product(given=_to_tf32, weight=_to_tf32)),
    _fault(
        "activations quantized unasked", "int8 codes in groups of 32, as ggml computes", product(given=_by_columns(32))
    ),
    _fault(
        "activations not quantized",
        "floats where the format says int8",
        product(quantize=lambda x: (x, np.ones((len(x), 1)))),
        _int8_activations,
    ),
    _fault(
        "columns beyond 512 dropped",
        "a fixed number of steps along K",
        product(multiply=lambda x, w: x[:, :512] @ w[:, :512].T),
        _any,
    ),
    _fault(
        "last columns dropped",
        "a loop over 32 columns without its tail",
        product(multiply=lambda x, w: x[:, : x.shape[1] // 32 * 32] @ w[:, : x.shape[1] // 32 * 32].T),
        _any,
    ),
    _fault("last column dropped", "K - 1", product(multiply=lambda x, w: x[:, :-1] @ w[:, :-1].T), _any),
    _fault("last output not written", "N - 1", partly_written(lambda y: y[:, -1:]), _any),
    _fault("outputs beyond 128 not written", "one tile along N", partly_written(lambda y: y[:, 128:]), _any),
    _fault(
        "outputs past a multiple of 16 not written",
        "a tile without its tail",
        partly_written(lambda y: y[:, y.shape[1] // 16 * 16 :]),
        _any,
    ),
    _fault("rows beyond 32 not written", "one tile along M", partly_written(lambda y: y[32:]), _any),
    _fault("rows beyond 4 not written", "a kernel for decode", partly_written(lambda y: y[4:]), _any),
    _fault(
        "one row: columns beyond 256 dropped",
        "a matrix-vector kernel of its own",
        product(multiply=_only(lambda x: len(x) == 1, lambda x, w: x[:, :256] @ w[:, :256].T)),
        _any,
    ),
    _fault(
        "one row: weights in bf16",
        "a matrix-vector kernel of its own",
        product(multiply=_only(lambda x: len(x) == 1, lambda x, w: x @ rounded(w, "bf16").T)),
    ),
    _fault(
        "one row: sums in f16",
        "a matrix-vector kernel of its own",
        product(multiply=_only(lambda x: len(x) == 1, _chained("f16", 64))),
    ),
    _fault(
        "transposed where square", "a BLAS flag that only square weights accept", product(multiply=_transposed), _any
    ),
    _fault(
        "first row for all",
        "the row's stride is 0",
        product(multiply=lambda x, w: np.broadcast_to(x[:1] @ w.T, (len(x), len(w)))),
        _any,
    ),
    _fault("strided rows read as dense", "the token stride is taken for K", read_as_dense, _any),
    _fault("bias dropped", "never read", product(add=lambda y, b, s: y), _biased),
    _fault("bias twice", "in the product and after it", product(add=lambda y, b, s: y + 2 * b), _biased),
    _fault("bias subtracted", "the sign", product(add=lambda y, b, s: y - b), _biased),
    _fault("bias of the neighbour", "one index off", product(add=lambda y, b, s: y + np.roll(b, 1)), _biased),
    _fault("one bias for all outputs", "the bias's stride is 0", product(add=lambda y, b, s: y + b[0]), _biased),
    _fault("bias in bf16", "rounded before it is added", product(add=lambda y, b, s: y + rounded(b, "bf16")), _biased),
    _fault(
        "product rounded before the bias",
        "two roundings",
        product(add=lambda y, b, s: rounded(y, s.out_dtype) + b),
        _biased,
    ),
    _fault("truncating store", "the upper half of the f32", product(store=truncated)),
    _fault("stored through f16", "two roundings, and the range of f16", product(store=_through("f16"))),
    _fault("stored through bf16", "two roundings", product(store=_through("bf16"))),
    _fault(
        "stored in the type of x",
        "the asked type is not looked at",
        product(store=_same, add=lambda y, b, s: rounded(_plus_bias(y, b), s.x_dtype)),
        lambda r: r.spec.x_dtype != r.spec.out_dtype,
    ),
    _fault("negative outputs cut", "a fused ReLU", product(store=lambda y, dtype: np.maximum(y, 0.0)), _any),
    _fault(
        "noise of 1e-3", "a race between two writers", product(store=lambda y, dtype: y * (1 + 1e-3 * np.sin(1e5 * y)))
    ),
)


# ---- grouped_matmul


def _grouped(
    *,
    offsets: Step = _same,
    expert: Step = lambda number, count: number,
    bias_of: Step = lambda number, count: number,
    multiply: Step = lambda x, w: x @ w.T,
    past: float | None = None,
) -> Step:
    """The right product for each expert, each step of which can be replaced. past: put into rows that are nobody's."""

    def compute(plan: Any, x: Float64, packed: Any, expert_offsets: Any, bias: Float64 | None = None) -> Float64:
        session, spec = plan.session, plan.request.spec
        bounds = np.clip(offsets(expert_offsets), 0, expert_offsets[-1])
        y = np.zeros((int(expert_offsets[-1]) if past is None else len(x), spec.n))
        y[int(expert_offsets[-1]) :] = past
        for number, (first, last) in enumerate(itertools.pairwise(bounds)):
            if first >= last:
                continue
            weight, rows = packed[expert(number, len(packed))], x[first:last]
            if _int8_activations(plan.request):
                rows, w = factors(plan, rows, weight)
            else:
                w = on_host(session, plan.dequantize(session, weight))
            own = None if bias is None else bias[bias_of(number, len(bias))]
            y[first:last] = _plus_bias(multiply(rows, w), own)
        return y

    return compute


def grouped(**steps: Any) -> Hook:
    return recomputed(_grouped(**steps))


def _inner_plus_one(offsets: Any) -> Any:
    return np.concatenate([offsets[:1], offsets[1:-1] + 1, offsets[-1:]])


def _empty_skipped(offsets: Any) -> Step:
    """Which weight an expert takes where those without rows were left out of the list of weights."""
    taken = np.cumsum(np.diff(offsets) > 0) - 1
    return lambda number, count: int(taken[number])


def _closed_up(plan: Any, x: Float64, packed: Any, expert_offsets: Any, bias: Float64 | None = None) -> Float64:
    compute = _grouped(expert=_empty_skipped(expert_offsets))
    return np.asarray(compute(plan, x, packed, expert_offsets, bias))


def _grouped_fault(name: str, wrong: str, run: Hook, where: Any = _any) -> Fault:
    return Fault(
        "grouped_matmul",
        name=f"grouped_matmul: {name}",
        category="matmul",
        wrong=wrong,
        run=run,
        where=where,
        session=REMEMBERED,
    )


_GROUPED: Final = (
    _grouped_fault("boundaries off by one", "inclusive ends", grouped(offsets=_inner_plus_one)),
    _grouped_fault("the next expert's weight", "one index off", grouped(expert=lambda e, count: (e + 1) % count)),
    _grouped_fault(
        "the first expert's weight for all",
        "a packed weight is cached by its format",
        grouped(expert=lambda e, count: 0),
    ),
    _grouped_fault(
        "empty experts skipped in the weights", "a compacted list, and weights by its index", recomputed(_closed_up)
    ),
    _grouped_fault(
        "experts beyond 8 take the eighth", "three bits for an expert", grouped(expert=lambda e, count: min(e, 7))
    ),
    _grouped_fault("rows past the last expert written", "the launch covers every row of x", grouped(past=0.0)),
    _grouped_fault("last row of an expert not written", "first <= row < last - 1", partly_written(lambda y: y[:1])),
    _grouped_fault("last output not written", "N - 1", partly_written(lambda y: y[:, -1:])),
    _grouped_fault(
        "the first expert's bias for all", "the bias's stride is 0", grouped(bias_of=lambda e, count: 0), _biased
    ),
    _grouped_fault(
        "the next expert's bias", "one index off", grouped(bias_of=lambda e, count: (e + 1) % count), _biased
    ),
    _grouped_fault("last columns dropped", "K - 32", grouped(multiply=lambda x, w: x[:, :-32] @ w[:, :-32].T)),
    _grouped_fault(
        "sums in bf16",
        "the accumulator in the activations' type",
        grouped(multiply=_chained("bf16")),
        _float_activations,
    ),
    _grouped_fault(
        "weights in bf16",
        "dequantized to bf16 before the product",
        grouped(multiply=lambda x, w: x @ rounded(w, "bf16").T),
        _float_activations,
    ),
)


# ---- embedding


def _lookup(*, row: Step = _same, value: Step = lambda rows, dtype: rows) -> Hook:
    """The right rows, each step of which can be replaced. row(ids, n): which rows are read."""

    def compute(plan: Any, ids: Any, packed: Any) -> Float64:
        spec = plan.request.spec
        table = on_host(plan.session, plan.dequantize(plan.session, packed))
        return np.asarray(value(table[row(ids, spec.n)], spec.out_dtype))

    return recomputed(compute)


def _embedding_fault(name: str, wrong: str, run: Hook, *telling: str) -> Fault:
    return Fault("embedding", name=f"embedding: {name}", category="matmul", wrong=wrong, run=run, telling=telling)


_EMBEDDING: Final = (
    _embedding_fault(
        "clamped before the last row", "min(id, n - 2)", _lookup(row=lambda ids, n: np.minimum(ids, max(n - 2, 0)))
    ),
    _embedding_fault("id + 1", "counted from 1", _lookup(row=lambda ids, n: (ids + 1) % n)),
    _embedding_fault(
        "ids in 16 bits",
        "wrong beyond 32767",
        _lookup(row=lambda ids, n: ids.astype(np.int16).astype(np.int64) % n),
        "n=40001",
    ),
    _embedding_fault(
        "token 0 gives zeros",
        "taken for padding",
        recomputed(
            lambda plan, ids, packed: np.where(
                (ids == 0)[:, None], 0.0, on_host(plan.session, plan.dequantize(plan.session, packed))[ids]
            )
        ),
    ),
    _embedding_fault(
        "scaled by sqrt(k)", "as Gemma has it", _lookup(value=lambda rows, dtype: rows * np.sqrt(rows.shape[1]))
    ),
    _embedding_fault("rows in bf16", "stored through bf16", _lookup(value=lambda rows, dtype: rounded(rows, "bf16"))),
    _embedding_fault("rows in f16", "stored through f16", _lookup(value=lambda rows, dtype: rounded(rows, "f16"))),
    _embedding_fault("truncating store", "the upper half of the f32", _lookup(value=truncated)),
    _embedding_fault("ids sorted", "gathered in the table's order", _lookup(row=lambda ids, n: np.sort(ids))),
    _embedding_fault("rows beyond 16 not written", "one tile of tokens", partly_written(lambda y: y[16:])),
    _embedding_fault("last columns not written", "a tile without its tail", partly_written(lambda y: y[:, -16:])),
)

FAULTS: Final[tuple[Fault, ...]] = (*_MATMUL, *_activation_faults(), *_GROUPED, *_EMBEDDING)
