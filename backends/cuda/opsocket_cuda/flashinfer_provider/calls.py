"""Every call that is made of FlashInfer, in one place, and the forms of these calls to hold against its signatures."""

from __future__ import annotations

from typing import Any, Final

import torch

from opsocket.operators import AttentionSpec, Cache, ResourceError
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket_cuda.flashinfer_provider.tables import Ints, Pages, is_causal

_LAYOUT: Final = "HND"
"""Its name of our layout "pages"."""
_OPTIONS: Final = ("sm_scale", "window_left", "q_data_type", "kv_data_type", "o_data_type")
_PREFILL: Final = ("head_dim_vo", "causal", *_OPTIONS)
_RUN: Final = ("out", "lse", "return_lse")

CALLS: Final = (
    ("flashinfer.prefill:BatchPrefillWithPagedKVCacheWrapper.__init__", 2, (
        "use_cuda_graph", "qo_indptr_buf", "paged_kv_indptr_buf", "paged_kv_indices_buf", "paged_kv_last_page_len_buf",
        "custom_mask_buf", "mask_indptr_buf", "backend", "max_total_num_rows",
    )),
    ("flashinfer.prefill:BatchPrefillWithPagedKVCacheWrapper.plan", 8, ("packed_custom_mask", *_PREFILL)),
    ("flashinfer.prefill:BatchPrefillWithPagedKVCacheWrapper.run", 2, ("k_scale", *_RUN)),
    ("flashinfer.prefill:BatchPrefillWithRaggedKVCacheWrapper.__init__", 2, ("backend",)),
    ("flashinfer.prefill:BatchPrefillWithRaggedKVCacheWrapper.plan", 5, ("custom_mask", *_PREFILL)),
    ("flashinfer.prefill:BatchPrefillWithRaggedKVCacheWrapper.run", 3, _RUN),
    ("flashinfer.decode:BatchDecodeWithPagedKVCacheWrapper.__init__", 2, ("use_tensor_cores", "backend")),
    ("flashinfer.decode:BatchDecodeWithPagedKVCacheWrapper.plan", 7, _OPTIONS),
    ("flashinfer.decode:BatchDecodeWithPagedKVCacheWrapper.run", 2, ("k_scale", *_RUN)),
)  # fmt: skip
"""(what is called, how many arguments go by position, which by name)"""


class PagedPrefill:
    """One wrapper over pages, with arrays of its own at addresses that stay, so that a graph may hold them.

    size: requests. rows: of q. pages: entries of all page tables. mask_bytes: of the bits, None where no mask is made
    of bits.
    """

    def __init__(
        self, workspace: torch.Tensor, backend: str, size: int, rows: int, pages: int, mask_bytes: int | None
    ) -> None:
        from flashinfer.prefill import BatchPrefillWithPagedKVCacheWrapper

        def ints(count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.int32, device=workspace.device)

        self.size, self.rows, self.pages, self.mask_bytes = size, rows, pages, mask_bytes
        self.mask, self.mask_starts = None, None
        if mask_bytes is not None:
            self.mask = torch.zeros(max(1, mask_bytes), dtype=torch.uint8, device=workspace.device)
            self.mask_starts = ints(size + 1)
        self._wrapper: Any = BatchPrefillWithPagedKVCacheWrapper(
            workspace,
            _LAYOUT,
            use_cuda_graph=True,
            qo_indptr_buf=ints(size + 1),
            paged_kv_indptr_buf=ints(size + 1),
            paged_kv_indices_buf=ints(max(1, pages)),
            paged_kv_last_page_len_buf=ints(size),
            custom_mask_buf=self.mask,
            mask_indptr_buf=self.mask_starts,
            backend=backend,
            max_total_num_rows=rows,
        )
        self._hand_over = _HandOver(workspace)

    def plan(self, spec: AttentionSpec, table: Pages, page_size: int, kv_code: str, causal: bool, left: int) -> None:
        bits = {} if self.mask is None else {"packed_custom_mask": self.mask[:0]}
        with self._hand_over:
            self._wrapper.plan(
                *map(torch.from_numpy, (table.q_indptr, table.kv_indptr, table.indices, table.last_page_len)),
                spec.num_q_heads,
                spec.num_kv_heads,
                spec.head_dim_qk,
                page_size,
                head_dim_vo=spec.head_dim_vo,
                causal=causal,
                **bits,
                **_options(spec, kv_code, left),
            )

    def run(self, q: torch.Tensor, cache: Cache, out: torch.Tensor, lse: torch.Tensor | None) -> None:
        planes = (cache.planes["k"], cache.planes["v"])
        self._wrapper.run(q, planes, k_scale=_k_scale(cache), out=out, lse=lse, return_lse=lse is not None)


class RaggedPrefill:
    """One wrapper over contiguous keys and values."""

    def __init__(self, workspace: torch.Tensor, backend: str) -> None:
        from flashinfer.prefill import BatchPrefillWithRaggedKVCacheWrapper

        self._wrapper: Any = BatchPrefillWithRaggedKVCacheWrapper(workspace, "NHD", backend=backend)
        self._hand_over = _HandOver(workspace)

    def plan(
        self, spec: AttentionSpec, q_indptr: Ints, kv_indptr: Ints, causal: bool, left: int, mask: torch.Tensor | None
    ) -> None:
        """mask: bool, the bits of all requests one after the other; None: by `causal` and `left`."""
        with self._hand_over:
            self._wrapper.plan(
                torch.from_numpy(q_indptr),
                torch.from_numpy(kv_indptr),
                spec.num_q_heads,
                spec.num_kv_heads,
                spec.head_dim_qk,
                head_dim_vo=spec.head_dim_vo,
                custom_mask=mask,
                causal=causal,
                **_options(spec, spec.kv_dtype, left),
            )

    def run(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, out: torch.Tensor, lse: torch.Tensor | None
    ) -> None:
        self._wrapper.run(q, k, v, out=out, lse=lse, return_lse=lse is not None)


class Decode:
    """One wrapper of the kernels for one query each, which multiply in f32."""

    def __init__(self, workspace: torch.Tensor) -> None:
        from flashinfer.decode import BatchDecodeWithPagedKVCacheWrapper

        # "auto" may take a library of other numerics; without tensor cores, "fa2" is the kernel in f32.
        self._wrapper: Any = BatchDecodeWithPagedKVCacheWrapper(
            workspace, _LAYOUT, use_tensor_cores=False, backend="fa2"
        )
        self._hand_over = _HandOver(workspace)

    def plan(self, spec: AttentionSpec, table: Pages, page_size: int, kv_code: str) -> None:
        with self._hand_over:
            self._wrapper.plan(
                *map(torch.from_numpy, (table.kv_indptr, table.indices, table.last_page_len)),
                spec.num_q_heads,
                spec.num_kv_heads,
                spec.head_dim_qk,
                page_size,
                **_options(spec, kv_code, -1),
            )

    def run(self, q: torch.Tensor, cache: Cache, out: torch.Tensor, lse: torch.Tensor | None) -> None:
        planes = (cache.planes["k"], cache.planes["v"])
        self._wrapper.run(q, planes, k_scale=_k_scale(cache), out=out, lse=lse, return_lse=lse is not None)


class _HandOver:
    """Around a plan. It fills pinned memory and enqueues a copy of it: the next one has to wait for that copy."""

    def __init__(self, workspace: torch.Tensor) -> None:
        self._workspace_bytes = workspace.numel()
        self._copied = torch.cuda.Event() if workspace.device.type == "cuda" else None

    def __enter__(self) -> None:
        if self._copied is not None:
            self._copied.synchronize()

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if self._copied is not None:
            self._copied.record()
        if isinstance(error, RuntimeError) and "overflow" in str(error):
            what = "bytes of FlashInfer's workspace"
            raise ResourceError(what, str(error).splitlines()[0], self._workspace_bytes) from error


def _options(spec: AttentionSpec, kv_code: str, left: int) -> dict[str, Any]:
    return {
        "sm_scale": spec.scale,
        "window_left": left,
        "q_data_type": TORCH_DTYPES[spec.q_dtype],
        "kv_data_type": TORCH_DTYPES[kv_code],
        "o_data_type": TORCH_DTYPES[spec.out_dtype],
    }


def _k_scale(cache: Cache) -> float | None:
    """The static scale of K, from the host's copy: the device is not asked."""
    scales: tuple[Any, Any] = getattr(cache, "host_scales", (None, None))
    return None if scales[0] is None else float(scales[0][0])


def left_window(spec: AttentionSpec) -> int:
    return -1 if spec.window_left is None else spec.window_left


def causality(spec: AttentionSpec, sees_all: bool) -> tuple[bool, int]:
    """`causal` and `window_left` of a plan whose masks count from the end."""
    return (False, -1) if sees_all else (is_causal(spec), left_window(spec))
