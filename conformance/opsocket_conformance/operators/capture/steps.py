"""A decode step, captured with one batch and replayed with others, gives the bits of the same step run eagerly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import numpy as np

from opsocket.operators import (
    Array,
    AttentionBatch,
    AttentionSpec,
    Bounds,
    Cache,
    CacheSpec,
    CacheWriteSpec,
    Exchange,
    MatmulSpec,
    Request,
    RMSNormSpec,
    RopeSpec,
    SlotBatch,
    Spec,
)
from opsocket.quantization import get_format
from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.floats import round_to
from opsocket_conformance.operators.cache import under_test as caches
from opsocket_conformance.operators.cache.formats import cache_spec
from opsocket_conformance.operators.capture.recording import poison, record, replay, same, same_rows
from opsocket_conformance.operators.matmul.random_weights import random_weight

_WIDTH = 64

Step = Sequence[tuple[int, int]]
"""(q_len, kv_len) of each request."""

BATCHES: Final[Mapping[str, tuple[Step, ...]]] = {
    "decode": (
        ((1, 37), (1, 5), (1, 131), (1, 16)),
        ((1, 38), (1, 6), (1, 132), (1, 17)),
        ((1, 1), (1, 300), (1, 7), (1, 129)),
        ((1, 90), (1, 2)),
        ((1, 9), (0, 0), (1, 33), (1, 3)),
    ),
    "uniform": (((3, 37), (3, 5), (3, 131)), ((3, 3), (3, 266), (3, 7)), ((3, 90),), ((3, 17), (0, 4), (3, 12))),
    "mixed": (((17, 17), (1, 40), (5, 67)), ((1, 41), (9, 9), (13, 280)), ((2, 3),), ((0, 5), (23, 23), (0, 0))),
}
"""The batches of a case, one after the other. The first is the one captured with; none has more rows or requests."""


@dataclass(frozen=True)
class CaptureStep(Check):
    """chain: "attention" alone, or a "layer": norm, projection, rotary embedding, cache write, attention, projection.
    batch: a name in `BATCHES`. hq, hkv, d, dv, bs, q, kv, latent: as in `Attention`.

    Where graphs can be repeated, or run on any number of rows, these replays too give the bits of the eager step, of as
    many rows.

    Kills: a batch that stays as it was captured, in attention or in what writes the cache; block tables, lengths or
    slots at other addresses than those captured; launches sized by the captured lengths; rows of a larger batch that a
    smaller one still writes; positions that were read when captured; a number of rows that stays as it was captured, or
    that reaches rows which it leaves out.
    """

    name: ClassVar[str] = "capture_step"
    shown: ClassVar[tuple[str, ...]] = ("chain", "batch", "q")

    chain: str = "attention"
    batch: str = "decode"
    hq: int = 14
    hkv: int = 2
    d: int = 64
    dv: int = 0
    bs: int = 16
    q: str = "bf16"
    kv: str = ""
    latent: bool = False

    @property
    def operator(self) -> str:
        return "capture"

    def features(self) -> frozenset[str]:
        flags = {
            "latent": self.latent,
            f"capture:{self.batch}": self.batch != "decode",
            f"head_dim:{self.d}": self.d not in (64, 128) or self.dv not in (0, self.d),
            f"block_size:{self.bs}": self.bs != 16,
        }
        needs = {"op:attention", f"dtype:{self.q}", f"cache:{self.kv or 'same'}", "capture", "deterministic"}
        if self.chain == "layer":
            needs |= {"op:rms_norm", "op:matmul", "op:rope", "op:cache_write"}
        return frozenset(needs | {name for name, on in flags.items() if on})

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        steps = BATCHES[self.batch]
        blocks = max(sum(-(-kv_len // self.bs) for _, kv_len in step) for step in steps) + 3
        spec = cache_spec(self.kv or self.q, blocks, self.bs, self.hkv, self.d, self.dv or self.d, self.latent)
        chain = (_Layer if self.chain == "layer" else _Attention)(bench, self, spec, _rows(steps[0]))
        eager, captured = (chain.side(bench, deepcopy(rng)) for _ in range(2))
        graph = result = counted = None
        for number, step in enumerate(steps):
            batch, slots, positions = _lengths(rng, step, spec)
            for side in (eager, captured):
                side.update(batch, slots)
            chain.change(bench, rng, positions)
            poison(bench, eager.outs)
            want = chain.run(bench, eager)
            if graph is None:
                plans = list(captured.plans.values())
                graph, result = record(bench, plans, lambda: chain.run(bench, captured), self.batch)
            else:
                replay(bench, graph, [captured.outs, result])
            same(bench, f"step {number}", result, want)
            replay(bench, graph, [captured.outs, result])
            same(bench, f"step {number}, replayed once more", result, want)
            if graph.repeats:
                replay(bench, graph.repeated([Exchange(), Exchange()]), [captured.outs, result])
                same(bench, f"step {number}, repeated", result, want)
            if graph.any_rows and all(plan.any_rows for plan in captured.plans.values()):
                rows = {chain.rows: len(slots)}
                if counted is None:
                    poison(bench, captured.outs)
                    with bench.session.capture(rows) as counted:
                        counted_result = chain.run(bench, captured)
                else:
                    replay(bench, counted, [captured.outs, counted_result], rows)
                # How many rows there are may decide how a row's sums are made.
                want = chain.run(bench, eager, len(slots))
                same_rows(bench, f"step {number}, {len(slots)} rows", counted_result, want, len(slots))
        same(bench, "after the last step", captured.cache, eager.cache)


def _rows(step: Step) -> int:
    return sum(q_len for q_len, _ in step)


def _lengths(rng: np.random.Generator, step: Step, cache: CacheSpec) -> tuple[AttentionBatch, Any, Any]:
    """A batch over random pages, and slot and position of every token that it adds, i64[T]."""
    q_lens, kv_lens = (np.array(column) for column in zip(*step, strict=True))
    used = -(-kv_lens // cache.block_size)
    pages = rng.permutation(cache.num_blocks)
    table = np.full((len(step), int(used.max()) + 1), 2**31 - 1, np.int32)
    slots, positions = [], []
    for number, (q_len, kv_len) in enumerate(step):
        table[number, : used[number]], pages = pages[: used[number]], pages[used[number] :]
        new = np.arange(kv_len - q_len, kv_len)
        slots.append(
            table[number, new // cache.block_size].astype(np.int64) * cache.block_size + new % cache.block_size
        )
        positions.append(new)
    indptr = np.concatenate([[0], np.cumsum(q_lens)]).astype(np.int32)
    batch = AttentionBatch(indptr, kv_lens.astype(np.int32), table)
    return batch, np.concatenate(slots), np.concatenate(positions)


@dataclass(eq=False)
class _Side:
    """What runs eagerly or is captured: plans by name, a cache, and outputs by name."""

    plans: dict[str, Any]
    cache: Cache
    outs: dict[str, Array]

    def update(self, batch: AttentionBatch, slots: Any) -> None:
        self.plans["attention"].update(batch)
        if "write" in self.plans:
            self.plans["write"].update(SlotBatch(slots))


class _Attention:
    """Attention alone, over a cache whose every slot holds a token of its own. rows: of q, in every step."""

    def __init__(self, bench: Bench, check: CaptureStep, cache: CacheSpec, rows: int) -> None:
        self.check, self.cache, self.rows = check, cache, rows
        self.requests = {"attention": Request(self._attention(), cache, bounds=Bounds(rows, 8, rows, 512))}
        for request in self.requests.values():
            bench.plan(request)  # before arrays are made, which a backend may lack the types of
        self.inputs = self._inputs(bench)

    def _attention(self) -> AttentionSpec:
        check = self.check
        return AttentionSpec(
            check.hq, check.hkv, check.d, check.dv or check.d, 1.25 * check.d**-0.5,
            q_dtype=check.q, out_dtype=check.q, deterministic=True,
        )  # fmt: skip

    def _inputs(self, bench: Bench) -> dict[str, Array]:
        return {"q": bench.session.empty((self.rows, self.check.hq, self.check.d), self.check.q)}

    def side(self, bench: Bench, rng: np.random.Generator) -> _Side:
        tokens = caches.tokens(rng, self.cache, self.check.q, self.cache.num_slots)
        cache = caches.allocate(bench, self.cache, self.check.q, caches.calibrate(self.cache, tokens.k, tokens.v))
        cache = caches.write(bench, cache, self.check.q, np.arange(self.cache.num_slots), tokens.k, tokens.v)
        plans = {name: bench.plan(request) for name, request in self.requests.items()}
        outs = {name: bench.out(name, shape, self.check.q) for name, shape in self._outs().items()}
        return _Side(plans, cache, outs)

    def _outs(self) -> dict[str, tuple[int, ...]]:
        return {"attended": (self.rows, self.check.hq, self.check.dv or self.check.d)}

    def change(self, bench: Bench, rng: np.random.Generator, positions: Any) -> None:
        """Other contents in the same inputs."""
        for name, array in self.inputs.items():
            if name == "positions":
                bench.session.write(array, positions)
            else:
                shape = bench.session.describe(array).shape
                bench.session.write(array, round_to(rng.standard_normal(shape), self.check.q))

    def of_rows(self, bench: Bench, arrays: dict[str, Array], rows: int | None) -> dict[str, Array]:
        """The first rows of each; None: of all."""
        if rows is None:
            return arrays
        return {name: bench.session.leading(array, rows) for name, array in arrays.items()}

    def run(self, bench: Bench, side: _Side, rows: int | None = None) -> list[Array]:
        """Every result, in the order in which it is made; of the first rows alone, where a number is given."""
        q, outs = (self.of_rows(bench, arrays, rows) for arrays in (self.inputs, side.outs))
        return [bench.run(side.plans["attention"], q["q"], side.cache, out=outs["attended"])[0]]


class _Layer(_Attention):
    """The first half of a decoder layer, its projections fused as engines do it: q, k and v are slices of one array."""

    def __init__(self, bench: Bench, check: CaptureStep, cache: CacheSpec, rows: int) -> None:
        super().__init__(bench, check, cache, rows)
        self.q_width, self.kv_width = check.hq * check.d, check.hkv * check.d
        specs: dict[str, Spec] = {
            "norm": RMSNormSpec(_WIDTH, 1e-5, check.q, residual=True),
            "project": MatmulSpec(check.q, self.q_width + 2 * self.kv_width, _WIDTH, check.q, check.q),
            "rope_q": RopeSpec(check.hq, check.d, check.d, 1e4, dtype=check.q),
            "rope_k": RopeSpec(check.hkv, check.d, check.d, 1e4, dtype=check.q),
            "back": MatmulSpec(check.q, _WIDTH, self.q_width, check.q, check.q),
        }
        self.requests |= {name: Request(spec, bounds=Bounds(rows)) for name, spec in specs.items()}
        self.requests["write"] = Request(CacheWriteSpec(check.q), cache, bounds=Bounds(rows))
        rng, format_ = np.random.default_rng(0), get_format(check.q)
        self.weights = {
            name: bench.prepare(bench.plan(self.requests[name]), random_weight(rng, format_, spec.n, spec.k))
            for name, spec in specs.items()
            if isinstance(spec, MatmulSpec)
        }
        self.gain = bench.put("gain", (1 + 0.3 * rng.standard_normal(_WIDTH)).astype(np.float32))

    def _inputs(self, bench: Bench) -> dict[str, Array]:
        floats = {name: bench.session.empty((self.rows, _WIDTH), self.check.q) for name in ("x", "residual")}
        return floats | {"positions": bench.session.upload(np.zeros(self.rows, np.int64))}

    def _outs(self) -> dict[str, tuple[int, ...]]:
        check, rows = self.check, self.rows
        return super()._outs() | {
            "normed": (rows, _WIDTH),
            "projected": (rows, self.q_width + 2 * self.kv_width),
            "q": (rows, check.hq, check.d),
            "k": (rows, check.hkv, check.d),
            "y": (rows, _WIDTH),
        }

    def run(self, bench: Bench, side: _Side, rows: int | None = None) -> list[Array]:
        check, plans, view = self.check, side.plans, bench.session.view
        inputs, outs = (self.of_rows(bench, arrays, rows) for arrays in (self.inputs, side.outs))
        rows, positions = self.rows if rows is None else rows, inputs["positions"]
        normed, summed = bench.run(plans["norm"], inputs["x"], self.gain, inputs["residual"], out=outs["normed"])
        projected = bench.run(plans["project"], normed, self.weights["project"], out=outs["projected"])
        parts = bench.session.split(projected, (self.q_width, self.kv_width, self.kv_width))
        q, k, v = (
            view(part, (rows, n, check.d)) for part, n in zip(parts, (check.hq, check.hkv, check.hkv), strict=True)
        )
        q = bench.run(plans["rope_q"], q, positions, out=outs["q"])
        k = bench.run(plans["rope_k"], k, positions, out=outs["k"])
        bench.run(plans["write"], side.cache, k, v)
        attended, _ = bench.run(plans["attention"], q, side.cache, out=outs["attended"])
        y = bench.run(plans["back"], view(attended, (rows, self.q_width)), self.weights["back"], out=outs["y"])
        return [normed, summed, projected, q, k, attended, y]
