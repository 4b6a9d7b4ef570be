"""Calls of torch's and torch_npu's operators as text: what they were given, and what CANN was asked for by them.

A tensor is its dtype, shape, strides and device, and its format where that is FRACTAL_NZ; its content is no part of a
call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch

from opsocket_ascend.torch_npu_provider.tiles import FRACTAL_NZ, is_tiled, tiled

_NAMED: Final = (torch.dtype, torch.layout, torch.memory_format)
"""Values that torch knows by a name of its own."""


@dataclass(frozen=True)
class Call:
    """operator: "npu::npu_quant_matmul.default". args, kwargs, results: as `encode` gives them. aclnn: the calls of
    CANN that were made under it, in order, as the emulator writes them; None where they are not known."""

    operator: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    results: Any = None
    aclnn: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """As people write it: npu_quant_matmul, add.Tensor."""
        return self.operator.partition("::")[2].removesuffix(".default")

    @property
    def asked(self) -> str:
        """The call without what came of it."""
        return json.dumps([self.operator, self.args, self.kwargs], separators=(",", ":"))

    def dumps(self) -> str:
        return json.dumps(vars(self), separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Call:
        return cls(**json.loads(text))

    def function(self) -> Any:
        """The overload; `AttributeError` where the torch and torch_npu that are here have none of that name."""
        namespace, _, name = self.operator.partition("::")
        packet, _, overload = name.partition(".")
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload)


def encode(value: Any) -> Any:
    """A value that an operator takes or returns, ready for JSON. `TypeError` for what no operator takes."""
    if isinstance(value, torch.Tensor):
        name = str(value.dtype).removeprefix("torch.")
        return tensor(name, value.shape, value.stride(), value.device.type, is_tiled(value))
    if isinstance(value, _NAMED):
        return {"torch": str(value).removeprefix("torch.")}
    if isinstance(value, torch.device):
        return {"device": value.type}
    if isinstance(value, (list, tuple)):
        return [encode(each) for each in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"an operator was given a {type(value).__name__}")


def tensor(
    dtype: str,
    shape: Sequence[int],
    strides: Sequence[int] | None = None,
    device: str = "npu",
    tiles: bool = False,
) -> dict[str, Any]:
    """What stands for a tensor. strides: None for a dense one."""
    described = {
        "tensor": dtype,
        "shape": list(shape),
        "strides": None if strides is None else list(strides),
        "device": device,
    }
    return described | ({"format": FRACTAL_NZ} if tiles else {})


def decode(value: Any, device: str) -> Any:
    """The other way: tensors with any content, those that were on the NPU on `device` now."""
    if isinstance(value, list):
        return [decode(each, device) for each in value]
    if not isinstance(value, dict):
        return value
    if "torch" in value:
        return getattr(torch, value["torch"])
    here = device if value["device"] == "npu" else value["device"]
    if "tensor" not in value:
        return torch.device(here)
    dtype = getattr(torch, value["tensor"])
    if value["strides"] is None:
        made = torch.empty(value["shape"], dtype=dtype, device=here)
    else:
        made = torch.empty_strided(value["shape"], value["strides"], dtype=dtype, device=here)
    return _in_tiles(made) if "format" in value and here == "npu" else made


def _in_tiles(plain: torch.Tensor) -> torch.Tensor:
    """As a cast makes it, or a transposed view of what a cast made."""
    return tiled(plain) if plain.is_contiguous() else tiled(plain.t()).t()


def shapes(value: Any) -> list[Any]:
    """Dtype and shape of every tensor among encoded results."""
    if isinstance(value, list):
        return [found for each in value for found in shapes(each)]
    return [[value["tensor"], value["shape"]]] if isinstance(value, dict) and "tensor" in value else []
