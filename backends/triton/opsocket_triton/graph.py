"""Capture on a GPU: one graph of the vendor's, replayed in one call; interpreted, the recorded runs once more."""

from __future__ import annotations

from typing import Any

from opsocket.operators import Graph


class GpuGraph(Graph):
    """CUDA's or HIP's graph, by torch. Grids are those of the captured batch: a kernel says by its `capture_level`
    which other batches its grid serves.

    The block's runs are carried out as they come, and recorded by the vendor once it is left. So what may not happen
    while a stream is being captured has happened before: kernels are compiled and loaded, libraries have their handles,
    plans their workspaces, in memory that outlives the graph; and a block that raises leaves no half-made graph.
    """

    def _begin(self) -> None:
        self._graph: Any = None

    def _end(self) -> None:
        if self.broken or not self.calls or getattr(self.session, "is_interpreted", False):
            return
        import torch

        device = self.session.torch_device  # type: ignore[attr-defined]
        with torch.cuda.device(device):
            graph = torch.cuda.CUDAGraph()
            # On a stream of its own: the default one can't be captured. It waits for the device before it begins.
            with torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
                self._run_again()
        self._graph = graph

    def _replay(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        else:
            self._run_again()

    def _run_again(self) -> None:
        for call in self.calls:
            _keep(call.result, call.plan.launch(call.kernel, call.args))


def _keep(captured: Any, result: Any) -> None:
    """What an operator returns without a parameter for it (a residual sum) goes where it was when captured."""
    if isinstance(captured, tuple):
        for old, new in zip(captured, result, strict=True):
            _keep(old, new)
    elif hasattr(captured, "copy_") and result is not captured:
        captured[: len(result)].copy_(result)  # a later batch may be shorter
