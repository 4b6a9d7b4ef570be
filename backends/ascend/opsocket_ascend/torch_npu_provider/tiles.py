"""Weights in FRACTAL_NZ, the tiles in which the matrix unit wants them: cast once, when a weight is packed.

Which operator reads tiles on which chip is data (`socs.py`). torch_npu 2.13.0 casts by CANN's aclnnNpuFormatCast where
CANN is 9.1.0 or newer, and by an operator of the older interface where it is not; what lies in memory is the same. It
casts to nothing, with a warning, where private formats are not allowed in the process, as they are not by default.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch

from opsocket.operators import ContractError, PackedWeight, Session
from opsocket_ascend.socs import soc_of

FRACTAL_NZ: Final = 29
LAYOUT: Final = "tiles"
"""Of 16-bit weights: W^T [K, N] in FRACTAL_NZ."""

_ND: Final = 2
_OPTION: Final = "ALLOW_INTERNAL_FORMAT"


def are_read(operator: str, session: Session, rows: int, columns: int) -> bool:
    """Whether an operator of torch_npu, or torch's "matmul", reads weights [rows, columns] in tiles on the session's
    chip. Of a single row or column none does."""
    soc = soc_of(session.device.arch)
    return soc is not None and operator in soc.reads_tiles and min(rows, columns) > 1


def packed(operator: str, session: Session, dense: PackedWeight) -> PackedWeight:
    """A 16-bit weight [N, K], transposed and in tiles where an operator reads these: layout LAYOUT. Else as it is."""
    if not are_read(operator, session, dense.k, dense.n):
        return dense
    content = tiled(dense.content.t())
    return PackedWeight(dense.weight_format, dense.n, dense.k, LAYOUT, content, storage_bytes(content))


def unpacked(weight: PackedWeight) -> PackedWeight:
    """The other way: layout "dense"."""
    if weight.layout != LAYOUT:
        return weight
    content = plain(weight.content).t().contiguous()
    return PackedWeight(weight.weight_format, weight.n, weight.k, "dense", content, storage_bytes(content))


def by_column(weight: PackedWeight) -> torch.Tensor:
    """[K, N], of either layout."""
    content: torch.Tensor = weight.content
    return content if weight.layout == LAYOUT else content.t()


def tiled(weight: torch.Tensor) -> torch.Tensor:
    """A copy in FRACTAL_NZ, of the same shape."""
    import torch_npu

    with _allowed():
        cast: torch.Tensor = torch_npu.npu_format_cast(weight.contiguous(), FRACTAL_NZ)
    if not is_tiled(cast):
        raise ContractError("weight", "a matrix that torch_npu casts to FRACTAL_NZ", list(weight.shape))
    return cast


def plain(weight: torch.Tensor) -> torch.Tensor:
    """A copy as strides have it, of the same shape."""
    import torch_npu

    cast: torch.Tensor = torch_npu.npu_format_cast(weight, _ND)
    return cast


def is_tiled(tensor: torch.Tensor) -> bool:
    """Whether a tensor's elements lie in FRACTAL_NZ, which its strides do not say."""
    # Of the operator itself: it is asked of every weight of every call, and torch_npu's function takes twice as long.
    return tensor.device.type == "npu" and torch.ops.npu.get_npu_format.default(tensor) == FRACTAL_NZ


def storage_bytes(weight: torch.Tensor) -> int:
    """Bytes that a weight takes on its device; in tiles, whole ones."""
    return weight.untyped_storage().nbytes()


@contextmanager
def _allowed() -> Iterator[None]:
    """Private formats are an option of the whole process, and others' tensors are left alone."""
    import torch_npu

    before = torch_npu._C._npu_getOption(_OPTION)
    torch.npu.config.allow_internal_format = True
    try:
        yield
    finally:
        torch.npu.config.allow_internal_format = before == b"enable"
