"""What arrays have to be for a vendor's operator: `ContractError` names the argument, what was wanted, what came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from opsocket.operators import ContractError
from opsocket_ascend.torch_npu_provider.tiles import is_tiled

HALVES: Final = (torch.float16, torch.bfloat16)


def each(
    name: str,
    values: Sequence[torch.Tensor] | None,
    count: int,
    dtype: torch.dtype,
    shape: Sequence[int | None],
    allowed: bool,
    wanted: bool = False,
) -> None:
    """One array for each weight, where such weights take them."""
    if values is None:
        if wanted:
            raise ContractError(name, f"{count} arrays", None)
        return
    if not allowed:
        raise ContractError(name, "None for these weights", f"{len(values)} arrays")
    if len(values) != count:
        raise ContractError(name, f"{count} arrays", len(values))
    for at, array in enumerate(values):
        dtype_of(f"{name}[{at}]", array, (dtype,))
        shape_of(f"{name}[{at}]", array, shape)


def dtype_of(name: str, tensor: torch.Tensor, allowed: Sequence[torch.dtype]) -> None:
    if tensor.dtype not in allowed:
        raise ContractError(name, f"one of {[str(dtype) for dtype in allowed]}", str(tensor.dtype))


def shape_of(name: str, tensor: torch.Tensor, shape: Sequence[int | None]) -> None:
    fits = len(shape) == tensor.dim() and all(w in (None, h) for w, h in zip(shape, tensor.shape, strict=True))
    if not fits:
        raise ContractError(name, f"shape {list(shape)}", list(tensor.shape))


def matrix(name: str, tensor: torch.Tensor) -> tuple[int, int]:
    shape_of(name, tensor, (None, None))
    return tensor.shape[0], tensor.shape[1]


def three(name: str, tensor: torch.Tensor) -> tuple[int, int, int]:
    shape_of(name, tensor, (None, None, None))
    return tensor.shape[0], tensor.shape[1], tensor.shape[2]


def dense(name: str, tensor: torch.Tensor) -> None:
    if not tensor.is_contiguous():
        raise ContractError(name, "a dense array", f"strides {tensor.stride()}")


def not_tiled(name: str, tensor: torch.Tensor) -> None:
    if is_tiled(tensor):
        raise ContractError(name, "an array as its strides have it", "one in FRACTAL_NZ")
