"""Ascend chips as data: what differs between them for the operators that are called here.

Families as the vendor's operator documentation names them. A2: Ascend 910B (Atlas 800I A2). A3: Ascend 910C, which its
own runtime calls Ascend910_93xx (Atlas 800I A3). 310P: Atlas 300I Duo, without bf16 and without most of what is fused.
That documentation, in the torch_npu wheel, states for each operator the families that have it, or have the form of it
that is called here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from opsocket.operators import ContractError

_GIB = 1 << 30


@dataclass(frozen=True)
class Soc:
    """name: as `aclrtGetSocName` says it. memory_bytes: of one device; of some chips there are several sizes, and this
    is the smallest. has_bf16: anywhere. has_f32_products: where not, torch_npu asks CANN for products of f32 with
    cubeMathType USE_FP16, which rounds both matrices to f16 first. has_graphs: updates of tasks in CANN's graphs are
    documented for it. lacks: operators of torch_npu, and forms of them. reads_tiles: the products documented to
    read a weight in FRACTAL_NZ when they are called one by one; "matmul" is torch's, of 16-bit matrices."""

    name: str
    family: str
    memory_bytes: int
    has_bf16: bool = True
    has_f32_products: bool = True
    has_graphs: bool = True
    lacks: frozenset[str] = frozenset()
    reads_tiles: frozenset[str] = frozenset()


BY_GROUPS: Final = "npu_weight_quant_batchmatmul with scales by groups"
"""A form of an operator that a chip may lack."""

_READS_TILES: Final = frozenset(
    {
        "npu_quant_matmul",  # by the wheel's documentation, of weights that are not transposed
        "matmul",  # by CANN's of aclnnMatmulWeightNz, which is what torch_npu makes of it
        "npu_grouped_matmul",  # by CANN's of aclnnGroupedMatmulWeightNz: 16-bit ones; of int8, all experts in one array
        # npu_weight_quant_batchmatmul reads them in graphs alone.
    }
)

_NOT_ON_310P: Final = frozenset(
    {
        "npu_fused_infer_attention_score",
        "npu_fused_infer_attention_score_v2",
        "npu_scatter_pa_kv_cache",
        "npu_dynamic_quant",  # and npu_quant_matmul there takes no scale for each token
        BY_GROUPS,
        "npu_grouped_matmul",  # it has it with all weights in one array
        "npu_swiglu",
        "npu_rotary_mul",
    }
)

SOCS: Final = (
    *(
        Soc(f"Ascend910B{suffix}", "A2", size * _GIB, reads_tiles=_READS_TILES)
        for suffix, size in (("1", 64), ("2", 64), ("2C", 64), ("3", 64), ("4", 32), ("4-1", 64))
    ),
    *(
        Soc(f"Ascend910_93{suffix}", "A3", 64 * _GIB, reads_tiles=_READS_TILES)
        for suffix in ("91", "92", "72", "81", "82", "62")
    ),
    *(
        Soc(
            f"Ascend310P{suffix}",
            "310P",
            24 * _GIB,
            has_bf16=False,
            has_f32_products=False,
            has_graphs=False,
            lacks=_NOT_ON_310P,
        )
        for suffix in ("1", "3", "5", "7")
    ),
)

FAMILIES: Final = ("Ascend910B3", "Ascend910_9391", "Ascend310P3")
"""One of each family, for which the same operators are called in the same way."""


def find_soc(name: str) -> Soc:
    """A chip by its name, spaces and the word "Ascend" left out or not; `ContractError` for one that is not known."""
    wanted = name.replace(" ", "").lower().removeprefix("ascend")
    for soc in SOCS:
        if soc.name.lower().removeprefix("ascend") == wanted:
            return soc
    raise ContractError("soc", f"one of {[soc.name for soc in SOCS]}", repr(name))


def soc_of(arch: str) -> Soc | None:
    """The chip that a `DeviceInfo.arch` names; None for the documentation's generic device and chips not known."""
    return next((soc for soc in SOCS if soc.name == arch), None)
