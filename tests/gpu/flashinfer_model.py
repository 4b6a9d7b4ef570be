"""What FlashInfer's documentation says of its wrappers, in float64 NumPy, computed from the arrays that they are given.

It stands in for the kernels, and nothing more: it shows that batches are translated right, and says nothing of how a
GPU rounds. As unkind as kernels may be: rows that see nothing get NaN (their LSE is -inf), an output is written without
regard to its strides, and what a wrapper keeps in the caller's buffers it reads there again.
"""

from __future__ import annotations

import math
import sys
import types
from itertools import pairwise

import numpy as np
import torch


def install(monkeypatch) -> None:
    """The package, with the wrappers that this provider uses."""
    package = types.ModuleType("flashinfer")
    package.__spec__ = types.SimpleNamespace(name="flashinfer")
    prefill, decode = types.ModuleType("flashinfer.prefill"), types.ModuleType("flashinfer.decode")
    prefill.BatchPrefillWithPagedKVCacheWrapper = PagedPrefill
    prefill.BatchPrefillWithRaggedKVCacheWrapper = RaggedPrefill
    decode.BatchDecodeWithPagedKVCacheWrapper = Decode
    package.prefill, package.decode = prefill, decode
    for module in (package, prefill, decode):
        monkeypatch.setitem(sys.modules, module.__name__, module)


def _wide(array: torch.Tensor) -> np.ndarray:
    return array.float().numpy().astype(np.float64)


def _attend(q, k, v, seen, sm_scale):
    """q [n, Hq, D], k, v [m, Hkv, D], seen [n, m] -> out, base 2 LSE."""
    group = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, group, axis=1), np.repeat(v, group, axis=1)
    logits = np.where(seen[None], sm_scale * np.einsum("nhd,mhd->hnm", q, k), -np.inf)
    top = logits.max(-1, keepdims=True, initial=-np.inf)
    with np.errstate(invalid="ignore", divide="ignore"):
        weights = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
        total = weights.sum(-1, keepdims=True)
        out = np.einsum("hnm,mhd->nhd", weights / total, np.where(seen.any(0)[:, None, None], v, 0.0))
        lse = (np.log(total) + top)[..., 0].T / math.log(2)
    return out, lse


def _seen(q_len, kv_len, causal, window_left):
    query, key = np.arange(q_len)[:, None], np.arange(kv_len)[None]
    seen = np.ones((q_len, kv_len), bool)
    if causal:
        seen &= key <= kv_len - q_len + query
    if window_left >= 0:
        seen &= key + q_len + window_left >= kv_len + query
    return seen


def _store(out: torch.Tensor, rows: np.ndarray, first: int) -> None:
    width = math.prod(out.shape[1:])
    flat = out.as_strided((len(out) * width,), (1,))
    flat[first * width : first * width + rows.size] = torch.from_numpy(np.ascontiguousarray(rows)).to(out.dtype).ravel()


class _Wrapper:
    def _planned(self, sm_scale, window_left, q_data_type, kv_data_type, o_data_type, causal=False):
        self._options = (sm_scale, window_left, causal)
        self._types = (q_data_type, kv_data_type, o_data_type)

    def _compute(self, q, q_indptr, keys, masks, k_scale, out, lse, return_lse):
        sm_scale, window_left, causal = self._options
        sm_scale *= 1.0 if k_scale is None else k_scale
        assert (q.dtype, out.dtype) == (self._types[0], self._types[2])
        assert len(q) == len(out) == q_indptr[-1]
        assert return_lse == (lse is not None)
        for request, (k, v) in enumerate(keys):
            first, last = int(q_indptr[request]), int(q_indptr[request + 1])
            if first == last:
                continue
            seen = _seen(last - first, len(k), causal, window_left) if masks is None else masks(request, len(k))
            if masks is not None and window_left >= 0:
                seen &= _seen(last - first, len(k), False, window_left)
            rows, base2 = _attend(_wide(q[first:last]), k, v, seen, sm_scale)
            _store(out, rows, first)
            if lse is not None:
                _store(lse, base2, first)


def _pages(cache, indptr, indices, last_page_len):
    """The keys and values of each request, HND pages."""
    found = []
    for request in range(len(last_page_len)):
        pages = indices[int(indptr[request]) : int(indptr[request + 1])].long()
        length = max(0, len(pages) - 1) * cache[0].shape[2] + int(last_page_len[request])
        assert len(pages) == 0 or 1 <= int(last_page_len[request]) <= cache[0].shape[2]
        k, v = (_wide(plane[pages].transpose(1, 2).flatten(0, 1))[:length] for plane in cache)
        found.append((k, v))
    return found


class PagedPrefill(_Wrapper):
    def __init__(self, float_workspace_buffer, kv_layout, *, use_cuda_graph, qo_indptr_buf, paged_kv_indptr_buf,
                 paged_kv_indices_buf, paged_kv_last_page_len_buf, custom_mask_buf, mask_indptr_buf, backend,
                 max_total_num_rows):  # fmt: skip
        assert kv_layout == "HND"
        assert use_cuda_graph
        assert len(paged_kv_indptr_buf) == len(qo_indptr_buf) == len(paged_kv_last_page_len_buf) + 1
        assert not float_workspace_buffer.any()
        self._buffers = (qo_indptr_buf, paged_kv_indptr_buf, paged_kv_indices_buf, paged_kv_last_page_len_buf)
        self._mask, self._mask_indptr, self._most = custom_mask_buf, mask_indptr_buf, max_total_num_rows
        self.backend = backend

    def plan(self, qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len, num_qo_heads, num_kv_heads,
             head_dim_qk, page_size, *, head_dim_vo, causal, packed_custom_mask=None, **options):  # fmt: skip
        assert int(qo_indptr[-1]) <= self._most
        given = (qo_indptr, paged_kv_indptr, paged_kv_indices, paged_kv_last_page_len)
        for buffer, values in zip(self._buffers, given, strict=True):
            assert values.dtype == torch.int32
            assert values.device.type == "cpu"
            buffer[: len(values)].copy_(values)
        assert len(qo_indptr) == len(self._buffers[0])
        assert (packed_custom_mask is not None) == (self._mask is not None)
        if self._mask_indptr is not None:
            self._mask_indptr.fill_(-1)
        self._page_size = page_size
        self._planned(causal=causal, **options)

    def run(self, q, paged_kv_cache, *, k_scale, out, lse, return_lse):
        q_indptr, *table = self._buffers
        assert paged_kv_cache[0].shape[2] == self._page_size
        keys = _pages(paged_kv_cache, table[0], table[1], table[2])

        def bits(request, kv_len):
            q_len = int(q_indptr[request + 1] - q_indptr[request])
            start = int(self._mask_indptr[request])
            held = self._mask[start : start + -(-q_len * kv_len // 8)].numpy()
            return np.unpackbits(held, bitorder="little")[: q_len * kv_len].reshape(q_len, kv_len).astype(bool)

        masks = None if self._mask is None else bits
        self._compute(q, q_indptr, keys, masks, k_scale, out, lse, return_lse)


class RaggedPrefill(_Wrapper):
    def __init__(self, float_workspace_buffer, kv_layout, *, backend):
        assert kv_layout == "NHD"
        self.backend = backend

    def plan(self, qo_indptr, kv_indptr, num_qo_heads, num_kv_heads, head_dim_qk, *, head_dim_vo, custom_mask, causal,
             **options):  # fmt: skip
        assert np.all(np.diff(kv_indptr.numpy()) >= 0)
        self._indptr, self._mask = (qo_indptr, kv_indptr), custom_mask
        self._planned(causal=causal, **options)

    def run(self, q, k, v, *, out, lse, return_lse):
        q_indptr, kv_indptr = self._indptr
        assert len(k) == len(v) == kv_indptr[-1]
        spans = [slice(first, last) for first, last in pairwise(kv_indptr.tolist())]
        keys = [(_wide(k[span]), _wide(v[span])) for span in spans]
        sizes = np.diff(q_indptr.numpy()) * np.diff(kv_indptr.numpy())
        starts = np.concatenate([[0], np.cumsum(sizes)])

        def bits(request, kv_len):
            held = self._mask[int(starts[request]) : int(starts[request + 1])]
            return held.numpy().reshape(int(q_indptr[request + 1] - q_indptr[request]), kv_len)

        masks = None if self._mask is None else bits
        self._compute(q, q_indptr, keys, masks, None, out, lse, return_lse)


class Decode(_Wrapper):
    def __init__(self, float_workspace_buffer, kv_layout, *, use_tensor_cores, backend):
        assert (kv_layout, use_tensor_cores, backend) == ("HND", False, "fa2")

    def plan(self, indptr, indices, last_page_len, num_qo_heads, num_kv_heads, head_dim, page_size, **options):
        self._table = (indptr, indices, last_page_len)
        self._planned(**options)

    def run(self, q, paged_kv_cache, *, k_scale, out, lse, return_lse):
        keys = _pages(paged_kv_cache, *self._table)
        self._compute(q, np.arange(len(keys) + 1), keys, None, k_scale, out, lse, return_lse)
