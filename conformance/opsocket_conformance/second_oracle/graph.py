"""Graphs of ONNX's primitive operators, written as arithmetic.

    g = Writer()
    x, weight = g.input("x", "f64"), g.input("weight", "f64")
    mean = g("ReduceMean", x * x, [-1])
    y = g.finish(y=x / g("Sqrt", mean + 1e-6) * weight)

No dimension is fixed: one graph serves every shape. `onnx` is imported when a graph is finished, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import onnx

Array = npt.NDArray[Any]

OPSET: Final = 26
"""Of the operators used here: the first with `BitCast`. ORT and the reference evaluator both serve it."""
_IR_VERSION: Final = 10

_ELEMENT: Final = {
    "f64": ("DOUBLE", np.float64),
    "f32": ("FLOAT", np.float32),
    "f16": ("FLOAT16", np.float16),
    "bf16": ("BFLOAT16", None),
    "f8e4m3fn": ("FLOAT8E4M3FN", None),
    "f8e4m3fnuz": ("FLOAT8E4M3FNUZ", None),
    "f8e5m2": ("FLOAT8E5M2", None),
    "i64": ("INT64", np.int64),
    "i32": ("INT32", np.int32),
    "i8": ("INT8", np.int8),
    "u32": ("UINT32", np.uint32),
    "u16": ("UINT16", np.uint16),
    "u8": ("UINT8", np.uint8),
    "bool": ("BOOL", np.bool_),
}
"""dtype -> ONNX's name for it, and the NumPy type, where there is one."""


def dtype_of(array: Array) -> str:
    """The name of an array's element type."""
    return next(name for name, (_, type_) in _ELEMENT.items() if type_ is not None and array.dtype == type_)


def element_type(dtype: str) -> int:
    """ONNX's number for an element type."""
    import onnx

    return int(onnx.TensorProto.DataType.Value(_ELEMENT[dtype][0]))


@dataclass(frozen=True, eq=False)
class Graph:
    """A finished graph. outputs: their names, in order."""

    model: onnx.ModelProto
    outputs: tuple[str, ...]

    @cached_property
    def bytes(self) -> bytes:
        """As a file holds it."""
        serialized: bytes = self.model.SerializeToString()
        return serialized


@dataclass(frozen=True, eq=False)
class Tensor:
    """A value in a graph that is being written; arithmetic on it writes a node."""

    writer: Writer
    name: str
    dtype: str

    def __add__(self, other: Any) -> Tensor:
        return self.writer("Add", self, other)

    def __sub__(self, other: Any) -> Tensor:
        return self.writer("Sub", self, other)

    def __rsub__(self, other: Any) -> Tensor:
        return self.writer("Sub", self.writer.constant(other, self.dtype), self)

    def __mul__(self, other: Any) -> Tensor:
        return self.writer("Mul", self, other)

    __radd__, __rmul__ = __add__, __mul__

    def __truediv__(self, other: Any) -> Tensor:
        return self.writer("Div", self, other)

    def __neg__(self) -> Tensor:
        return self.writer("Neg", self)

    def __floordiv__(self, other: Any) -> Tensor:
        """Of integers that are not negative: ONNX's Div cuts off towards zero."""
        return self.writer("Div", self, other)

    def __mod__(self, other: Any) -> Tensor:
        return self.writer("Mod", self, other)

    def __and__(self, other: Any) -> Tensor:
        return self.writer("And" if self.dtype == "bool" else "BitwiseAnd", self, other)

    def __or__(self, other: Any) -> Tensor:
        return self.writer("Or" if self.dtype == "bool" else "BitwiseOr", self, other)

    def __rshift__(self, other: Any) -> Tensor:
        return self.writer("BitShift", self, other, direction="RIGHT")

    def __lshift__(self, other: Any) -> Tensor:
        return self.writer("BitShift", self, other, direction="LEFT")

    def __lt__(self, other: Any) -> Tensor:
        return self.writer("Less", self, other, dtype="bool")

    def __le__(self, other: Any) -> Tensor:
        return self.writer("LessOrEqual", self, other, dtype="bool")

    def __gt__(self, other: Any) -> Tensor:
        return self.writer("Greater", self, other, dtype="bool")

    def __ge__(self, other: Any) -> Tensor:
        return self.writer("GreaterOrEqual", self, other, dtype="bool")

    def equals(self, other: Any) -> Tensor:
        """Element by element."""
        return self.writer("Equal", self, other, dtype="bool")

    def cast(self, dtype: str) -> Tensor:
        """The values in another type, rounded to nearest even; 8-bit floats saturate."""
        return self.writer("Cast", self, dtype=dtype, to=element_type(dtype))

    def bits_as(self, dtype: str) -> Tensor:
        """The same bits, read as another type of the same width."""
        return self.writer("BitCast", self, dtype=dtype, to=element_type(dtype))

    def reshape(self, *shape: int) -> Tensor:
        """0 keeps a dimension, -1 takes what is left."""
        return self.writer("Reshape", self, list(shape))

    def unsqueeze(self, *axes: int) -> Tensor:
        return self.writer("Unsqueeze", self, list(axes))

    def part(self, axis: int, start: int, stop: int) -> Tensor:
        """A slice along one axis."""
        return self.writer("Slice", self, [start], [stop], [axis])


@dataclass(eq=False)
class Writer:
    """Writes one graph. Calling it writes a node of the operator named, and gives that node's output."""

    _nodes: list[onnx.NodeProto] = field(default_factory=list)
    _inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    _constants: list[onnx.TensorProto] = field(default_factory=list)
    _count: int = 0

    def input(self, name: str, dtype: str) -> Tensor:
        """An input of any shape."""
        from onnx.helper import make_tensor_value_info

        self._inputs.append(make_tensor_value_info(name, element_type(dtype), None))
        return Tensor(self, name, dtype)

    def constant(self, value: Any, dtype: str) -> Tensor:
        """A number or array that is part of the graph."""
        from onnx.numpy_helper import from_array

        name = self._name()
        self._constants.append(from_array(np.array(value, _ELEMENT[dtype][1]), name))
        return Tensor(self, name, dtype)

    def __call__(self, op: str, *operands: Any, dtype: str = "", **attributes: Any) -> Tensor:
        """One node with one output. dtype: of the output, by default that of the first operand that is not bool.

        Operands that are no tensors become constants: numbers in that type, lists as i64, arrays in their own.
        """
        return self.many(op, *operands, dtypes=(dtype,), **attributes)[0]

    def many(self, op: str, *operands: Any, dtypes: Sequence[str], **attributes: Any) -> tuple[Tensor, ...]:
        """One node with several outputs, whose types are `dtypes`."""
        from onnx.helper import make_node

        typed = [o.dtype for o in operands if isinstance(o, Tensor)]
        own = next((dtype for dtype in typed if dtype != "bool"), typed[0])
        inputs = [self._operand(operand, own).name for operand in operands]
        outputs = tuple(Tensor(self, self._name(), dtype or own) for dtype in dtypes)
        self._nodes.append(make_node(op, inputs, [o.name for o in outputs], **attributes))
        return outputs

    def finish(self, **outputs: Tensor) -> Graph:
        """The graph whose outputs are these, in this order."""
        from onnx import ValueInfoProto
        from onnx.helper import make_graph, make_model, make_node, make_opsetid

        names = tuple(self._name() for _ in outputs)
        for name, tensor in zip(names, outputs.values(), strict=True):
            self._nodes.append(make_node("Identity", [tensor.name], [name]))
        values = [ValueInfoProto(name=name) for name in names]
        graph = make_graph(self._nodes, "operator", self._inputs, values, self._constants)
        model = make_model(graph, opset_imports=[make_opsetid("", OPSET)], ir_version=_IR_VERSION)
        return Graph(model, names)

    def _operand(self, operand: Any, dtype: str) -> Tensor:
        if isinstance(operand, Tensor):
            return operand
        if isinstance(operand, np.ndarray):
            return self.constant(operand, dtype_of(operand))
        return self.constant(operand, "i64" if isinstance(operand, list) else dtype)

    def _name(self) -> str:
        self._count += 1
        return f"t{self._count}"
