"""Measures |out - ref| / E of correct implementations in every numeric model: `measure_tolerance.py [--check]`.

Writes docs/tolerance-ratios.svg and the table in docs/tolerance.md. Ends with 1 where a model exceeds half of E; with
--check it writes nothing.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from opsocket.operators import Numerics
from opsocket.quantization import get_format
from opsocket_conformance.findings import Findings, ratios
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators import merge_states, rms_norm, silu_mul
from opsocket_conformance.operators.attention.distributions import DISTRIBUTIONS
from opsocket_conformance.operators.attention.oracle import attention
from opsocket_conformance.operators.attention.tolerance import tolerance as attention_tolerance
from opsocket_conformance.operators.matmul.inputs import activations
from opsocket_conformance.operators.matmul.product import expect
from opsocket_conformance.operators.matmul.random_weights import random_weight
from opsocket_conformance.operators.matmul.weights import dequantize
from opsocket_conformance.power.models import (
    apart,
    chained,
    flash,
    int8_products,
    problem,
    products,
    tilings,
    with_rounded_scales,
)
from opsocket_conformance.tolerance import Bound

DOCS = Path(__file__).resolve().parents[1] / "docs"
F = np.float32
Float64 = npt.NDArray[np.float64]
Measured = tuple[str, str, Float64]
"""A model, an order of summation, and ratios."""
BINS = np.linspace(0, 0.6, 61)

ATTENTION = {
    "f32": ("f32", "f32", Numerics()),
    "f32, approximate exp and tanh": ("f32", "f32", Numerics(exp="approx", tanh="approx")),
    "bf16 in, f32 out": ("bf16", "f32", Numerics()),
    "bf16": ("bf16", "bf16", Numerics()),
    "bf16, bf16 probabilities": ("bf16", "bf16", Numerics("bf16")),
    "bf16 in, f32 out, bf16 probabilities": ("bf16", "f32", Numerics("bf16")),
    "f16, f16 probabilities": ("f16", "f16", Numerics("f16")),
    "f16 in, f32 out, f16 probabilities": ("f16", "f32", Numerics("f16")),
    "f32, sums truncated at every product": ("f32", "f32", Numerics(accumulate="f32_truncating")),
    "bf16 in, f32 out, sums truncated every 8": (
        "bf16", "f32", Numerics(accumulate="f32_truncating", accumulate_step=8),
    ),
    "f16 in, f32 out, f16 probabilities, truncated every 16": (
        "f16", "f32", Numerics("f16", accumulate="f32_truncating", accumulate_step=16),
    ),
    "bf16 in, f32 out, K and V rounded to bf16": ("bf16", "f32", Numerics(dequantized="bf16")),
    "f16 in, f32 out, K and V rounded to f16": ("f16", "f32", Numerics(dequantized="f16")),
}  # fmt: skip
MATMUL = {
    "f32": Numerics(),
    "truncated at every product": Numerics(accumulate="f32_truncating"),
    "truncated every 8": Numerics(accumulate="f32_truncating", accumulate_step=8),
    "truncated every 16": Numerics(accumulate="f32_truncating", accumulate_step=16),
    "weights rounded to bf16": Numerics(dequantized="bf16"),
    "weights rounded to f16": Numerics(dequantized="f16"),
    "weights rounded to bf16, truncated every 8": Numerics(
        accumulate="f32_truncating", accumulate_step=8, dequantized="bf16"
    ),
    "scales rounded to bf16": Numerics(scales="bf16"),
    "scales and weights rounded to f16": Numerics(dequantized="f16", scales="f16"),
}
FORMATS = ("f32", "q4_1", "q4_K", "i4_g32_z", "i2_g64_z", "gptq_v1_i4_g32_act")
INT8_FORMATS = ("q4_0_a8", "q4_1_a8", "q4_1_a8g32", "q8_0_a8", "q6_K_a8g32", "i2_g64_z_a8", "gptq_v1_i4_g32_act_a8g32")
KINDS = ("normal", "outliers", "cancel", "extreme")


def attention_ratios() -> Iterator[Measured]:
    for number, (name, (dtype, out_dtype, numerics)) in enumerate(ATTENTION.items()):
        rng = np.random.default_rng(number)
        for kind in DISTRIBUTIONS:
            cap = 20.0 if kind == "saturate" else None
            given = problem(kind, rng, dtype, out_dtype, numerics, cap=cap, sinks=kind == "flat", keys=350)
            out, lse = attention(given)
            bounds = attention_tolerance(given, out, lse)
            for index, (order, tiles) in enumerate(tilings(350)):
                got, got_lse = flash(given, tiles, rng=rng, early_scale=index == 1, base2=index == 2)
                yield f"attention: {name}", order, _ratios(got, out, bounds.out)
                yield "LSE, all of these models", order, _ratios(got_lse, lse, bounds.lse, False)


def matmul_ratios() -> Iterator[Measured]:
    m, n, k = 40, 136, 1024
    for number, (name, numerics) in enumerate(MATMUL.items()):
        rng = np.random.default_rng(100 + number)
        for format_id in FORMATS:
            fmt = get_format(format_id)
            if fmt.is_float and (numerics.dequantized, numerics.scales) != ("f32", "f32"):
                continue
            for kind in KINDS:
                tensors, x = random_weight(rng, fmt, n, k), activations(rng, kind, m, k, "f32")
                weight = dequantize(fmt, tensors, n, k)
                want, bound = expect(fmt, x, weight, None, "f32", numerics)
                w = weight.value.astype(F)
                if numerics.scales != "f32":
                    w = with_rounded_scales(fmt, weight, numerics.scales)
                for order, got in products(x, w if fmt.is_float else round_to(w, numerics.dequantized), numerics):
                    yield f"matmul: {name}", order, _ratios(got, want, bound)
                if not fmt.is_float and numerics == Numerics():
                    yield f"matmul: {name}", "codes and zeros apart", _ratios(apart(fmt, tensors, x, n, k), want, bound)


def int8_ratios() -> Iterator[Measured]:
    m, n, k = 40, 136, 1024
    rng = np.random.default_rng(150)
    for format_id in INT8_FORMATS:
        fmt = get_format(format_id)
        for kind in KINDS:
            tensors, x = random_weight(rng, fmt, n, k), activations(rng, kind, m, k, "f32")
            want, bound = expect(fmt, x, dequantize(fmt, tensors, n, k), None, "f32", Numerics())
            for order, got in int8_products(fmt, tensors, x, n, k):
                yield "matmul: int8 activations, scales by groups", order, _ratios(got, want, bound)


def other_ratios() -> Iterator[Measured]:
    rng = np.random.default_rng(200)
    for spread in (1.0, 30.0, 200.0):
        outs = rng.standard_normal((7, 60, 8, 64)).astype(F)
        lses = rng.normal(0, spread, (7, 60, 8)).astype(F)
        want, lse = merge_states.merge_states(outs.astype(float), lses.astype(float))
        bounds = merge_states.tolerance(outs.astype(float), lses.astype(float), want, lse, "f32")
        for order, parts in (("first to last", range(7)), ("last to first", range(6, -1, -1))):
            top, total, acc = np.full_like(lses[0], -np.inf), np.zeros_like(lses[0]), np.zeros_like(outs[0])
            for s in parts:
                new = np.maximum(top, lses[s])
                a, b = np.exp(top - new, dtype=F), np.exp(lses[s] - new, dtype=F)
                acc, total, top = acc * a[..., None] + outs[s] * b[..., None], total * a + b, new
            yield "merge_states: f32", order, _ratios(acc / total[..., None], want, bounds.out)
    for width in (64, 896, 4096):
        x, w = rng.standard_normal((120, width)).astype(F), rng.standard_normal(width).astype(F)
        want = rms_norm.rms_norm(x.astype(float), w.astype(float), 1e-5)
        bound = rms_norm.tolerance(want, width, "f32")
        for order, squares in (
            ("one chain", chained(x**2, np.ones((1, width), F))),
            ("tree", np.sum(x**2, axis=1, keepdims=True, dtype=F)),
        ):
            yield "rms_norm: f32", order, _ratios(x * (F(1) / np.sqrt(squares / F(width) + F(1e-5))) * w, want, bound)
    gate, up = ((rng.standard_normal((120, 896)) * s).astype(F) for s in (30, 1))
    want = silu_mul.silu_mul(gate.astype(float), up.astype(float))
    with np.errstate(over="ignore"):
        got = gate / (F(1) + np.exp(-gate, dtype=F)) * up
    yield (
        "silu_mul: f32",
        "-",
        _ratios(got, want, silu_mul.tolerance(gate.astype(float), up.astype(float), want, "f32")),
    )


def _ratios(got: npt.ArrayLike, want: Float64, bound: Bound, biased: bool = True) -> Float64:
    """Ratios of a comparison that finds nothing: no element out of bounds, and no lean."""
    got, findings = np.asarray(got, np.float64), Findings()
    findings.compare("a correct implementation", got, want, bound, biased=biased)
    for failure in findings.failures:
        print(failure, file=sys.stderr)
    return ratios(got, want, bound).ravel()


@dataclass
class Model:
    """counts: of ratios, in `BINS`. orders: elements by order of summation."""

    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(len(BINS) - 1, np.int64))
    orders: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    worst: float = 0.0

    def add(self, order: str, values: Float64) -> None:
        self.counts += np.histogram(np.minimum(values, BINS[-1]), BINS)[0]
        self.orders[order] += values.size
        self.worst = max(self.worst, float(values.max()))

    @property
    def median(self) -> float:
        """Upper edge of the bin that holds it."""
        return float(BINS[1 + np.searchsorted(np.cumsum(self.counts), self.counts.sum() / 2)])


def measure() -> dict[str, Model]:
    models: dict[str, Model] = defaultdict(Model)
    for source in (attention_ratios(), matmul_ratios(), int8_ratios(), other_ratios()):
        for model, order, values in source:
            models[model].add(order, values)
    return dict(models)


def table(models: dict[str, Model]) -> str:
    lines = ["| model | orders | elements | median below | worst |", "| --- | --- | --- | --- | --- |"]
    for name, model in models.items():
        total = sum(model.orders.values())
        lines.append(f"| {name} | {len(model.orders)} | {total:,} | {model.median:.2f} | {model.worst:.3f} |")
    return "\n".join(lines)


def svg(models: dict[str, Model]) -> str:
    """One row of bars for each model, heights on a logarithmic scale; a line at half of E."""
    left, row, bar, tall = 420, 34, 6, 26
    width, height = left + bar * (len(BINS) - 1) + 70, row * len(models) + 60
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
        ' font-family="sans-serif" font-size="12">',
        "<style>text{fill:#333}.b{fill:#3b7ea1}.g{stroke:#bbb}.h{stroke:#c33;stroke-dasharray:4 3}"
        "@media(prefers-color-scheme:dark){text{fill:#ddd}.g{stroke:#666}}</style>",
        '<text x="10" y="18">|out - ref| / E of correct implementations; bars: elements, logarithmic</text>',
    ]
    x_of = {share: left + bar * (len(BINS) - 1) * share / BINS[-1] for share in (0.0, 0.25, 0.5)}
    for share, x in x_of.items():
        kind = "h" if share == 0.5 else "g"
        parts.append(f'<line class="{kind}" x1="{x:.0f}" x2="{x:.0f}" y1="30" y2="{height - 22}"/>')
        parts.append(f'<text x="{x:.0f}" y="{height - 6}" text-anchor="middle">{share:g}</text>')
    for number, (name, model) in enumerate(models.items()):
        base = 36 + row * number + tall
        parts.append(f'<text x="{left - 10}" y="{base - 6}" text-anchor="end">{name}</text>')
        most = np.log10(1 + model.counts.max())
        for index in np.flatnonzero(model.counts):
            size = max(tall * np.log10(1 + model.counts[index]) / most, 1.0)
            x = left + bar * index
            parts.append(f'<rect class="b" x="{x}" y="{base - size:.1f}" width="{bar - 1}" height="{size:.1f}"/>')
        parts.append(f'<text x="{width - 62}" y="{base - 6}">{model.worst:.3f}</text>')
    return "\n".join([*parts, "</svg>", ""])


def main(check: bool) -> int:
    models = measure()
    print(table(models))
    if not check:
        (DOCS / "tolerance-ratios.svg").write_text(svg(models))
        page = DOCS / "tolerance.md"
        block = f"<!-- measured: ratios -->\n{table(models)}\n<!-- end: ratios -->"
        page.write_text(
            re.sub(
                r"<!-- measured: ratios -->.*?<!-- end: ratios -->", lambda _: block, page.read_text(), flags=re.DOTALL
            )
        )
    over = [name for name, model in models.items() if model.worst > 0.5 + 1e-9]
    if over:
        print(f"more than half of E: {', '.join(over)}", file=sys.stderr)
    return 1 if over else 0


if __name__ == "__main__":
    sys.exit(main(check="--check" in sys.argv[1:]))
