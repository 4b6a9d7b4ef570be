"""Capture on a GPU: one graph of the vendor's, replayed in one call; interpreted, the recorded runs once more."""

from __future__ import annotations

from typing import Any

from opsocket.operators import Graph


class GpuGraph(Graph):
    """CUDA's or HIP's graph, by torch. Grids are those of the captured batch: a kernel says by its `capture_level`
    which other batches its grid serves."""

    def _begin(self) -> None:
        self._graph: Any = None
        if getattr(self.session, "is_interpreted", False):
            return
        import torch

        self._graph = torch.cuda.CUDAGraph()
        self._stream = torch.cuda.Stream()
        self._stream.wait_stream(torch.cuda.current_stream())
        self._within = torch.cuda.stream(self._stream)
        self._within.__enter__()
        self._graph.capture_begin()

    def _end(self) -> None:
        if self._graph is None:
            return
        import torch

        try:
            self._graph.capture_end()
        finally:
            self._within.__exit__(None, None, None)
        torch.cuda.current_stream().wait_stream(self._stream)
        self._graph.replay()

    def _replay(self) -> None:
        if self._graph is not None:
            self._graph.replay()
            return
        for call in self.calls:
            _keep(call.result, call.plan.launch(call.kernel, call.args))


def _keep(captured: Any, result: Any) -> None:
    """What an operator returns without a parameter for it (a residual sum) goes where it was when captured."""
    if isinstance(captured, tuple):
        for old, new in zip(captured, result, strict=True):
            _keep(old, new)
    elif hasattr(captured, "copy_") and result is not captured:
        captured[: len(result)].copy_(result)  # a later batch may be shorter
