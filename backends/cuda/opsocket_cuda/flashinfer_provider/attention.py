"""Attention by FlashInfer's wrappers: our batches become its page tables in `update`, at addresses that stay."""

from __future__ import annotations

import weakref
from typing import Any, Final

import numpy as np
import torch

from opsocket.operators import AttentionBatch, AttentionPlan, Cache, ContractError, Ragged, Reason, Session, Unsupported
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cuda.flashinfer_provider import tables
from opsocket_cuda.flashinfer_provider.calls import Decode, PagedPrefill, RaggedPrefill, causality
from opsocket_triton.attention import foreign

WORKSPACE_BYTES: Final = 384 << 20
"""For parts of split keys, shared by the plans of a session: they run one after the other."""
_SHORT: Final = 64
"""Queries of a request up to which a kernel that splits keys is faster than Hopper's own (FlashInfer's own rule)."""

_workspaces: weakref.WeakKeyDictionary[Session, torch.Tensor] = weakref.WeakKeyDictionary()


def workspace(session: Session) -> torch.Tensor:
    """Zeros, as its first use wants them."""
    if session not in _workspaces:
        made = session.empty((WORKSPACE_BYTES,), "u8")
        _workspaces[session] = made.zero_()
    return _workspaces[session]


class _FlashInferAttention(AttentionPlan):
    """What the three kinds of wrappers have in common: rows that they left are finished by a kernel of ours, which
    turns a base 2 LSE into a natural one, and has rows that see nothing hold 0 and -inf whatever was written there.

    `batch.host_exact=False` is Unsupported: FlashInfer plans with the host's lengths.
    """

    def _setup(self) -> None:
        self._count = 0
        self._any_blind = False
        self._finish: foreign.Rows | None = None
        self._log2: torch.Tensor | None = None
        self._made: torch.Tensor | None = None

    def _is_recorded(self) -> bool:
        return any(graph.limits_of(self) for graph in self._recorded_in())

    def _update(self, batch: AttentionBatch) -> None:
        if not batch.host_exact:
            reason = Reason("host_exact", "batch.host_exact", False, True)
            raise Unsupported([reason], request=self.request, backend=str(self.session.device))
        found = tables.rows(batch, self.spec)
        count = len(found.request)
        if self._finish is None or count > self._finish.capacity:
            if self._is_recorded():
                raise self._too_large("rows", 0 if self._finish is None else self._finish.capacity, count)
            rows = self._room("max_tokens", count)
            self._finish = foreign.Rows(self.session, rows)
            if self.spec.want_lse or self.spec.mask == "tree":  # which alone knows of a row that its bits hide all from
                self._log2 = self.session.empty((rows, self.spec.num_q_heads), "f32")
        self._plan(batch, found)
        self._finish.update(found.blind)
        self._count, self._any_blind = count, bool(found.blind.any())

    def _plan(self, batch: AttentionBatch, found: tables.Rows) -> None:
        """Hook: give the wrapper the batch."""
        raise NotImplementedError

    def _attend(
        self, q: torch.Tensor, kv: Any, tree_mask: torch.Tensor | None, out: torch.Tensor, log2: torch.Tensor | None
    ) -> None:
        """Hook: the wrapper's run over the rows of the batch; out and log2 are dense."""
        raise NotImplementedError

    def _room(self, bound: str, need: int) -> int:
        """How large to make an array that has to hold `need`: as the bounds say, else to the next power of two."""
        given = getattr(self.request.bounds, bound)
        return max(need, given) if given is not None else 1 << max(0, need - 1).bit_length()

    def _too_large(self, what: str, have: int, need: int) -> ContractError:
        return ContractError("batch", f"at most {have} {what}: a graph holds their arrays", need)

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
        spec, count, capturing = self.spec, self._count, self.session.capturing is not None
        if out is None:
            out = q.new_empty((len(q), spec.num_q_heads, spec.head_dim_vo), dtype=TORCH_DTYPES[spec.out_dtype])
        if spec.want_lse and lse_out is None:
            lse_out = q.new_empty((len(q), spec.num_q_heads), dtype=torch.float32)
        assert self._finish is not None
        if not count and not capturing:
            return out, lse_out
        # FlashInfer writes rows one after the other, whatever the array's strides say.
        made = None if out.is_contiguous() else self._dense(out)
        log2 = self._log2
        self._attend(
            q[:count], kv, tree_mask, (out if made is None else made)[:count], None if log2 is None else log2[:count]
        )
        if capturing or self._any_blind or made is not None or log2 is not None:
            # A replay may have more rows than this batch, or other ones that see nothing.
            rows = min(len(q), self._finish.capacity) if capturing else count
            self._finish.finish(rows, out, made, lse_out, log2)
        return out, lse_out

    def _dense(self, out: torch.Tensor) -> torch.Tensor:
        if self._made is None or len(self._made) < len(out):
            if self._is_recorded():
                raise self._too_large("rows of a strided out", 0 if self._made is None else len(self._made), len(out))
            self._made = torch.empty(out.shape, dtype=out.dtype, device=out.device)
        return self._made[: len(out)]


class FlashInferPagedAttention(_FlashInferAttention):
    """BatchPrefillWithPagedKVCacheWrapper, for prompts, decoding and trees alike, on arrays that a graph may hold.

    A later batch that the arrays have no room for, or whose masks are of another kind (by positions that count from
    the end, or by bits), is a `ContractError` once a graph has recorded the plan.
    """

    capture_level = "any"

    def _setup(self) -> None:
        super()._setup()
        self._wrappers: dict[tuple[tables.Masking, str], PagedPrefill] = {}
        self._trees: dict[PagedPrefill, foreign.TreeBits] = {}
        self._chosen: tuple[tables.Masking, str] | None = None

    def _plan(self, batch: AttentionBatch, found: tables.Rows) -> None:
        spec, cache = self.spec, self.request.cache
        assert cache is not None
        size = len(batch.q_indptr) - 1
        made = tables.pages(batch, spec, found, cache.block_size, self._room("max_batch", size))
        kind = tables.masking(spec, found)
        starts = tables.mask_starts(made.q_indptr, made.kv_lens) if kind == "bits" else None
        if starts is not None and starts[-1] >= 2**31:
            raise ContractError("batch", "masks of fewer than 2^31 bytes", int(starts[-1]))
        chosen = (kind, self._kernels(batch, kind))
        if self._is_recorded():
            if self._chosen is not None and kind != self._chosen[0]:
                raise ContractError("batch", f"keys seen by {self._chosen[0]!r}, as captured", kind)
            chosen = self._chosen or chosen
        wrapper = self._wrapper(chosen, len(found.request), made, 0 if starts is None else int(starts[-1]))
        if wrapper.size != len(made.last_page_len):
            made = tables.pages(batch, spec, found, cache.block_size, wrapper.size)
        causal, left = causality(spec, kind != "ends")
        wrapper.plan(spec, made, cache.block_size, cache.k.code, causal, left)
        if starts is not None:
            self._mask(wrapper, batch, found, made)
        self._chosen = chosen

    def _kernels(self, batch: AttentionBatch, kind: tables.Masking) -> str:
        """FlashInfer's name of the kernels. Hopper's own take neither bits nor other types, nor do they split keys."""
        spec, cache = self.spec, self.request.cache
        assert cache is not None
        hopper = self.session.device.arch == "sm_90" and kind != "bits" and cache.k.code == spec.q_dtype
        return "fa3" if hopper and np.diff(batch.q_indptr).max(initial=0) > _SHORT else "fa2"

    def _wrapper(
        self, chosen: tuple[tables.Masking, str], rows: int, made: tables.Pages, mask_bytes: int
    ) -> PagedPrefill:
        """One with room for the batch, made anew where there is none and no graph holds the old one's arrays."""
        need = {"size": len(made.last_page_len), "rows": rows, "pages": len(made.indices), "mask_bytes": mask_bytes}
        found = self._wrappers.get(chosen)
        if found is not None:
            short = [name for name, count in need.items() if (getattr(found, name) or 0) < count]
            if not short:
                return found
            if self._is_recorded():
                raise self._too_large(short[0], getattr(found, short[0]) or 0, need[short[0]])
        room = self._bounded(need)
        wrapper = PagedPrefill(
            workspace(self.session), chosen[1], room["size"], room["rows"], room["pages"],
            room["mask_bytes"] if chosen[0] == "bits" else None,
        )  # fmt: skip
        self._wrappers[chosen] = wrapper
        if self.spec.mask == "tree":
            has_base = self.spec.window_left is not None or self.spec.window_right is not None
            self._trees[wrapper] = foreign.TreeBits(self.session, room["mask_bytes"], room["size"], has_base)
        return wrapper

    def _bounded(self, need: dict[str, int]) -> dict[str, int]:
        bounds, cache = self.request.bounds, self.request.cache
        assert cache is not None
        room = {name: 1 << max(0, count - 1).bit_length() for name, count in need.items()}
        room["size"], room["rows"] = need["size"], self._room("max_tokens", need["rows"])
        if bounds.max_kv_len is not None and bounds.max_batch is not None:
            room["pages"] = max(need["pages"], bounds.max_batch * -(-bounds.max_kv_len // cache.block_size))
            if bounds.max_tokens is not None and self.spec.mask == "tree":
                most = bounds.max_tokens * bounds.max_kv_len // 8 + bounds.max_batch
                room["mask_bytes"] = max(need["mask_bytes"], most)
        return room

    def _mask(self, wrapper: PagedPrefill, batch: AttentionBatch, found: tables.Rows, made: tables.Pages) -> None:
        starts = tables.mask_starts(made.q_indptr, made.kv_lens)
        # The wrapper counts bits where its kernels count bytes, so what it has put there is replaced.
        self.session.write(wrapper.mask_starts, starts.astype(np.int32))
        trees = self._trees.get(wrapper)
        windowed = trees is None or self.spec.window_left is not None or self.spec.window_right is not None
        base = tables.packed(found, made) if windowed else None
        if trees is None:
            self.session.write(wrapper.mask, base)
        else:
            assert batch.mask_indptr is not None
            first = np.zeros(wrapper.size, np.int64)
            first[: len(batch.mask_indptr) - 1] = np.asarray(batch.mask_indptr)[:-1]
            trees.update(starts, np.diff(made.q_indptr).astype(np.int64), made.kv_lens, first, base)

    def _attend(
        self, q: torch.Tensor, kv: Any, tree_mask: torch.Tensor | None, out: torch.Tensor, log2: torch.Tensor | None
    ) -> None:
        assert self._chosen is not None
        wrapper = self._wrappers[self._chosen]
        if tree_mask is not None:
            self._trees[wrapper].run(tree_mask, wrapper.mask)
        wrapper.run(q, kv, out, log2)


class FlashInferRaggedAttention(_FlashInferAttention):
    """BatchPrefillWithRaggedKVCacheWrapper. It takes keys of consecutive requests only, so that unused rows between
    ours become requests without queries. Not captured: it makes its arrays anew for each batch."""

    def _setup(self) -> None:
        super()._setup()
        self._wrappers: dict[tuple[bool, str], RaggedPrefill] = {}
        self._wrapper: RaggedPrefill | None = None
        self._keys = 0

    def _plan(self, batch: AttentionBatch, found: tables.Rows) -> None:
        spec, kind = self.spec, tables.masking(self.spec, found)
        q_indptr, kv_indptr = tables.ragged(batch, found)
        bits = None
        if kind == "bits":
            mask = [tables.seen(found, batch.q_indptr, request) for request in range(len(found.kv_lens))]
            bits = self.session.upload(np.concatenate(mask, axis=None).astype(np.uint8)).bool()
        hopper = self.session.device.arch == "sm_90" and bits is None
        backend = "fa3" if hopper and np.diff(q_indptr).max(initial=0) > _SHORT else "fa2"
        # One that has had a mask keeps it.
        key = (bits is not None, backend)
        if key not in self._wrappers:
            self._wrappers[key] = RaggedPrefill(workspace(self.session), backend)
        causal, left = causality(spec, kind != "ends")
        self._wrappers[key].plan(spec, q_indptr, kv_indptr, causal, left, bits)
        self._wrapper, self._keys = self._wrappers[key], int(kv_indptr[-1])

    def _attend(
        self, q: torch.Tensor, kv: Any, tree_mask: torch.Tensor | None, out: torch.Tensor, log2: torch.Tensor | None
    ) -> None:
        assert self._wrapper is not None
        self._wrapper.run(q, kv.k[: self._keys], kv.v[: self._keys], out, log2)


class FlashInferDecode(_FlashInferAttention):
    """BatchDecodeWithPagedKVCacheWrapper without tensor cores: products, probabilities and sums in f32, rounded to
    nearest; one query of each request at most. Not captured: a fixed batch would write the rows of its padding."""

    def _setup(self) -> None:
        super()._setup()
        self._wrapper: Decode | None = None

    def _plan(self, batch: AttentionBatch, found: tables.Rows) -> None:
        cache = self.request.cache
        assert cache is not None
        if not len(found.request):
            return
        if self._wrapper is None:
            self._wrapper = Decode(workspace(self.session))
        made = tables.decode_pages(batch, self.spec, found, cache.block_size)
        self._wrapper.plan(self.spec, made, cache.block_size, cache.k.code)

    def _attend(
        self, q: torch.Tensor, kv: Any, tree_mask: torch.Tensor | None, out: torch.Tensor, log2: torch.Tensor | None
    ) -> None:
        assert self._wrapper is not None
        self._wrapper.run(q, kv, out, log2)
