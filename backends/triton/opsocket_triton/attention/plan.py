"""Attention's plan: a batch as a list of items on the device, and the launches that walk it."""

from __future__ import annotations

from typing import Any, Final

import torch
import triton

from opsocket.operators import (
    AttentionBatch,
    AttentionPlan,
    Cache,
    ContractError,
    KVFormat,
    Ragged,
    Reason,
    Unsupported,
)
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_triton.attention.kernel import attend
from opsocket_triton.attention.merge import merge_parts
from opsocket_triton.attention.schedule import HEADER, ITEM, MERGE, SMALL_ROWS, Schedule, Tiling, schedule
from opsocket_triton.attention.tiles import products, shares_values, split_dim, tile
from opsocket_triton.launch import launch

_LOG2_E: Final = 1.4426950408889634
_WAVES: Final = 2
"""Programs for each multiprocessor before a tile's keys are split no further."""
_INTERPRETED_PROCESSORS: Final = 16
_LEAST_PART: Final = 128
"""Keys of a part: fewer cost more in merging than they gain."""
_NARROW: Final = (torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2)
_SCALED: Final = {
    "none": "none",
    "tensor": "scalar",
    "head": "scalar",
    "channel": "channel",
    "token_head": "token_head",
}


class TritonAttention(AttentionPlan):
    """`batch.host_exact=False` is Unsupported: the items are made from the host's lengths.

    A captured run has room for the batches that `request.bounds` allows; a later batch beyond what the plan has room
    for is a `ContractError`, since the arrays that a graph has recorded can't grow.
    """

    capture_level = "any"

    def _setup(self) -> None:
        spec, cache, arch = self.spec, self.request.cache, self.session.device.arch
        made_of = products(self.request, arch)
        self._small = tile(self.request, made_of, arch, is_large=False)
        self._large = tile(self.request, made_of, arch, is_large=True)
        programs = max(1, -(-_WAVES * self._processors() // spec.num_kv_heads))
        keys = max(self._small.keys, self._large.keys)
        self._tiling = Tiling(self._large.rows, keys, programs, _LEAST_PART)
        self._schedule: Schedule | None = None
        exact = spec.numerics.exp == "exact"
        # Logits in units of ln 2 where the exponential is a power of two.
        self._unit = 1.0 if exact else _LOG2_E
        cap = spec.softcap
        self._scale = spec.scale * self._unit if cap is None else spec.scale / cap
        k, v = (None, None) if cache is None else (cache.k, cache.v or cache.k)
        d0, d1 = split_dim(spec.head_dim_qk)
        v0, v1 = split_dim(spec.head_dim_vo)
        block_size = 1 if cache is None else cache.block_size
        self._constants = {
            "PAGED": cache is not None,
            "POWER": block_size & (block_size - 1) == 0,
            "TREE": spec.mask == "tree",
            "ALIBI": spec.alibi,
            "CAP": cap is not None,
            "EXACT": exact,
            "EXACT_TANH": cap is None or spec.numerics.tanh == "exact",
            "SHARE": shares_values(spec, cache),
            "DIM_QK": spec.head_dim_qk, "D0": d0, "D1": d1,
            "DIM_VO": spec.head_dim_vo, "V0": v0, "V1": v1,
            "K_CODE": spec.kv_dtype if k is None else k.code, "V_CODE": spec.kv_dtype if v is None else v.code,
            "K_SCALE": "none" if k is None else _SCALED[k.granularity],
            "V_SCALE": "none" if v is None else _SCALED[v.granularity],
            "QK": made_of.qk, "PV": made_of.pv,
        }  # fmt: skip
        self._room = 0
        self._ints: Any = None
        self._part_room = 0
        self._parts: Any = None
        self._states: Any = self.session.empty((1, 2), "f32")
        self._reserve(self._bounded_ints(), self._most_part_rows())

    def _processors(self) -> int:
        if getattr(self.session, "is_interpreted", False):
            return _INTERPRETED_PROCESSORS
        return int(torch.cuda.get_device_properties(self.session.torch_device).multi_processor_count)

    def _bounded_ints(self) -> int:
        """How long a list of the largest batch within the request's bounds is; 0 where these are open."""
        bounds, cache = self.request.bounds, self.request.cache
        if bounds.max_tokens is None or bounds.max_batch is None or bounds.max_kv_len is None:
            return 0
        small, large, merges = self._most(bounds.max_tokens, bounds.max_batch)
        width = 0 if cache is None else -(-bounds.max_kv_len // cache.block_size)
        return HEADER + ITEM * (small + large) + MERGE * merges + bounds.max_tokens + bounds.max_batch * width

    def _most(self, tokens: int, sequences: int) -> tuple[int, int, int]:
        """Most items of small and of large tiles, and most merges, of a batch of so many rows and sequences."""
        group, bounds = self.spec.group, self.request.bounds
        rows, sequences = tokens * group, min(tokens, sequences)
        parts = self._tiling.most_parts
        if bounds.max_kv_len is not None and bounds.max_kv_len <= _LEAST_PART:
            parts = 0
        small = sequences + parts + (0 if self._tiling.has_large else -(-rows // SMALL_ROWS))
        large = -(-rows // self._large.rows) + sequences + parts if self._has_large() else 0
        return small, large, min(rows, parts // 2 * self._height())

    def _has_large(self) -> bool:
        """Whether a sequence within the bounds may have more rows than a small tile, and large ones are higher."""
        most = self.request.bounds.max_q_len
        return self._tiling.has_large and (most is None or most * self.spec.group > SMALL_ROWS)

    def _height(self) -> int:
        """Rows of the highest tile."""
        return max(SMALL_ROWS, self._large.rows) if self._has_large() else SMALL_ROWS

    def _most_part_rows(self) -> int:
        """Rows of all parts of any batch, for one KV head: a graph may be replayed with another batch, whose keys are
        split where those of the captured one were not."""
        most = self.request.bounds.max_kv_len
        return 0 if most is not None and most <= _LEAST_PART else self._tiling.most_parts * self._height()

    def _reserve(self, ints: int, part_rows: int) -> None:
        """Arrays with room for so many numbers and rows of parts, or the ones that there were."""
        numbers, parts, states = self._ints, self._parts, self._states
        if ints > self._room and self._is_recorded():
            raise ContractError("batch", f"at most {self._room} numbers of items: a graph holds their array", ints)
        if part_rows > self._part_room:
            rows = part_rows * self.spec.num_kv_heads
            parts = self.session.empty((rows, self.spec.head_dim_vo), "f32")
            states = self.session.empty((rows, 2), "f32")
        if ints > self._room:
            numbers = self.session.empty((ints,), "i32")
        self._room, self._part_room = max(ints, self._room), max(part_rows, self._part_room)
        self._ints, self._parts, self._states = numbers, parts, states

    def _is_recorded(self) -> bool:
        return any(graph.limits_of(self) for graph in self._recorded_in())

    def _update(self, batch: AttentionBatch) -> None:
        if not batch.host_exact:
            reason = Reason("host_exact", "batch.host_exact", False, True)
            raise Unsupported([reason], request=self.request, backend=str(self.session.device))
        made = schedule(batch, self.spec, self.request.cache, self._tiling)
        self._reserve(len(made.ints), made.part_rows)
        self.session.write(self._ints, made.ints)
        self._schedule = made

    def _run(
        self,
        q: torch.Tensor,
        kv: Cache | Ragged,
        sinks: torch.Tensor | None,
        alibi: torch.Tensor | None,
        tree_mask: torch.Tensor | None,
        out: torch.Tensor | None,
        lse_out: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        spec, made = self.spec, self._schedule
        assert made is not None
        if out is None:
            out = q.new_empty((len(q), spec.num_q_heads, spec.head_dim_vo), dtype=TORCH_DTYPES[spec.out_dtype])
        if spec.want_lse and lse_out is None:
            lse_out = q.new_empty((len(q), spec.num_q_heads), dtype=torch.float32)
        small, large, merges = made.small, made.large, made.merges
        if self.session.capturing is not None:
            small, large, merges = self._most(len(q), len(self.batch.kv_lens))
        args = {
            "ints": self._ints, "q": q, "alibi": alibi, "tree": tree_mask, "out": out,
            # Not used where not asked for, and of one type in any case.
            "sinks": self._states if sinks is None else sinks, "lse": self._states if lse_out is None else lse_out,
            "parts": self._parts, "states": self._states, "q_row": q.stride(0), "out_row": out.stride(0),
            "lse_row": 0 if lse_out is None else lse_out.stride(0), "scale": self._scale,
            "cap": (spec.softcap or 0.0) * self._unit, "unit": self._unit,
            **_keys(kv), **self._constants,
        }  # fmt: skip
        for count, shape, is_large in ((small, self._small, False), (large, self._large, True)):
            launch(
                attend, (count, spec.num_kv_heads), warps=shape.warps, stages=shape.stages,
                **args, LARGE=is_large, UNMASKED=shape.unmasked, BM=shape.rows, BN=shape.keys,
            )  # fmt: skip
        width = triton.next_power_of_2(spec.head_dim_vo)
        launch(
            merge_parts,
            (merges, spec.num_kv_heads),
            **{name: args[name] for name in _MERGED},
            DIM=spec.head_dim_vo,
            WIDTH=width,
            PARTS=max(2, min(16, 4096 // width)),
        )
        return out, lse_out


_MERGED: Final = (
    "ints", "parts", "states", "sinks", "out", "lse", "out_row", "lse_row", "unit", "EXACT",
)  # fmt: skip


def _keys(kv: Cache | Ragged) -> dict[str, Any]:
    """The kernel's arguments about where keys, values and their scales lie."""
    if isinstance(kv, Ragged):
        places = {name: (x, 0, x.stride(1), x.stride(0)) for name, x in (("k", kv.k), ("v", kv.v))}
        scales: dict[str, tuple[Any, int, int]] = {"ks": (None, 0, 0), "vs": (None, 0, 0)}
    else:
        spec = kv.spec
        source = "v" if spec.v is not None else "k"
        planes = {"k": kv.planes["k"], "v": kv.planes[source]}
        places = {name: (_bytes(x), x.stride(0), x.stride(1), x.stride(2)) for name, x in planes.items()}
        scales = {
            "ks": _scale(spec.k, kv.planes.get("k_scale"), kv.k_scale),
            "vs": _scale(spec.v or spec.k, kv.planes.get(f"{source}_scale"), kv.v_scale if spec.v else kv.k_scale),
        }
    args: dict[str, Any] = {}
    for name, (plane, block, head, token) in places.items():
        args |= {name: plane, f"{name}_block": block, f"{name}_head": head, f"{name}_token": token}
    for name, (array, block, head) in scales.items():
        args |= {f"{name[0]}_scale": array, f"{name}_block": block, f"{name}_head": head}
    return args


def _bytes(plane: torch.Tensor) -> torch.Tensor:
    return plane.view(torch.uint8) if plane.dtype in _NARROW else plane


def _scale(fmt: KVFormat, stored: torch.Tensor | None, given: torch.Tensor | None) -> tuple[Any, int, int]:
    """Scales, and how far apart those of blocks and of heads are."""
    if stored is not None:
        return stored, stored.stride(0), stored.stride(1)
    if given is None:
        return None, 0, 0
    return given, 0, {"tensor": 0, "head": 1, "channel": given.shape[-1]}[fmt.granularity]
