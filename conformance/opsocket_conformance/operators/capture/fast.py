"""Attention with everything that `Numerics` permits, captured, and replayed with other lengths: within tolerance."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Final

import numpy as np

from opsocket_conformance.bench import Bench
from opsocket_conformance.case import Check
from opsocket_conformance.operators.attention.knobs import Attention, judge
from opsocket_conformance.operators.attention.scene import build, fill
from opsocket_conformance.operators.capture.recording import poison, record, replay

_LONGEST: Final = (137, 331, 2, 16)
_STEPS: Final = ((20, 130, 1, 9), _LONGEST, (128, 129, 2, 3), (1, 300, 1, 16))
"""Keys of each request, the first as captured: one query each, the cache filled for the longest."""


@dataclass(frozen=True)
class CaptureFast(Check):
    """hq, hkv, d, dv, q, kv, lse, sinks, latent: as in `Attention`, over blocks of 128.

    The bits of an eager run are not asked for, as in `CaptureStep`: such operators promise none. Some take lengths on
    the host, and a graph has to be told of them anew.

    Kills: lengths that stay as they were captured; a block table at another address; launches, and space for them,
    sized by the captured lengths.
    """

    name: ClassVar[str] = "capture_fast"
    shown: ClassVar[tuple[str, ...]] = ("hq", "hkv", "d", "q")

    hq: int = 14
    hkv: int = 2
    d: int = 64
    dv: int = 0
    q: str = "bf16"
    kv: str = ""
    lse: bool = False
    sinks: bool = False
    latent: bool = False

    @property
    def operator(self) -> str:
        return "capture"

    def _attention(self) -> Attention:
        batch = "r" + "+".join(f"1:{kv_len}" for kv_len in _LONGEST)
        permitted: dict[str, Any] = {"prob": self.q, "exp": "approx", "acc": "f32_truncating", "deq": self.q}
        return Attention(
            self.hq, self.hkv, self.d, self.dv, 128, self.q, self.kv, batch=batch, lse=self.lse, sinks=self.sinks,
            latent=self.latent, snk=self.q, **permitted,
        )  # fmt: skip

    def features(self) -> frozenset[str]:
        return self._attention().features() | {"capture"}

    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        scene = build(self._attention(), rng)
        plan: Any = bench.plan(scene.request, scene.batch)
        kv, keys, values = fill(bench, scene)
        given, rows = scene.operands(bench), len(scene.q)
        q = bench.session.upload(scene.q, self.q)
        outs = {"out": bench.out("out", (rows, self.hq, scene.spec.head_dim_vo), self.q)}
        if self.lse:
            outs["lse_out"] = bench.out("lse", (rows, self.hq), "f32")
        graph = None
        for number, lengths in enumerate(_STEPS):
            batch = replace(scene.batch, kv_lens=np.array(lengths, np.int32))
            now = np.roll(scene.q, number, axis=0)
            plan.update(batch)
            bench.session.write(q, now)
            if graph is None:
                poison(bench, outs)
                graph, _ = record(bench, [plan], lambda: bench.run(plan, q, kv, **given, **outs))
            else:
                replay(bench, graph, outs)
            seen = [[part[:n] for part, n in zip(parts, lengths, strict=True)] for parts in (keys, values)]
            problem = replace(scene.problem(*seen), batch=batch, q=now.astype(np.float64))
            judge(bench, problem, bench.get(outs["out"]), bench.get(outs["lse_out"]) if self.lse else None)
