"""Who evaluates a graph: ONNX's own reference evaluator, and ONNX Runtime: two implementations of each primitive."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from opsocket.operators import Reason, Unsupported
from opsocket_conformance.second_oracle.graph import Graph

Array = npt.NDArray[Any]


class Evaluator(ABC):
    """Evaluates graphs on NumPy arrays; a graph is compiled once and kept."""

    name: ClassVar[str]
    packages: ClassVar[tuple[str, ...]]

    def __init__(self) -> None:
        missing = [package for package in self.packages if importlib.util.find_spec(package) is None]
        if missing:
            want = f"the package {missing[0]} installed: pip install 'opsocket[oracle]'"
            raise Unsupported([Reason("package", missing[0], None, want)], backend="second oracle")
        self._compiled: dict[Graph, Any] = {}

    def __call__(self, graph: Graph, **inputs: npt.ArrayLike) -> tuple[Array, ...]:
        """The graph's outputs, in order."""
        if graph not in self._compiled:
            self._compiled[graph] = self._compile(graph)
        arrays = {name: np.ascontiguousarray(value).reshape(np.shape(value)) for name, value in inputs.items()}
        with np.errstate(all="ignore"):  # infinities and NaN are among the questions
            outputs = self._compiled[graph].run(list(graph.outputs), arrays)
        return tuple(np.asarray(output) for output in outputs)

    def versions(self) -> str:
        """What evaluates, as installed: "onnx 1.23.2"."""
        return ", ".join(f"{package} {importlib.metadata.version(package)}" for package in self.packages)

    @abstractmethod
    def _compile(self, graph: Graph) -> Any: ...


class Reference(Evaluator):
    """ONNX's reference evaluator: every operator as its specification writes it, over NumPy."""

    name = "reference"
    packages = ("onnx",)

    def _compile(self, graph: Graph) -> Any:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(graph.model)


class OnnxRuntime(Evaluator):
    """ONNX Runtime on the CPU, the graph as written: no optimization, no fusion, one thread."""

    name = "onnxruntime"
    packages = ("onnx", "onnxruntime")

    def _compile(self, graph: Graph) -> Any:
        import onnxruntime  # type: ignore[import-untyped, unused-ignore]

        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 4
        return onnxruntime.InferenceSession(graph.bytes, options, providers=["CPUExecutionProvider"])


EVALUATORS: Final[tuple[type[Evaluator], ...]] = (Reference, OnnxRuntime)
"""Both."""
