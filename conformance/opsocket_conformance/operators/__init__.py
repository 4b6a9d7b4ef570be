"""The operators, one file or folder each: what can be asked, in which cases, and how answers are judged."""

from __future__ import annotations

from typing import Final

from opsocket_conformance.case import Check
from opsocket_conformance.operators.add import Add
from opsocket_conformance.operators.argmax import Argmax
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.laws import AttentionLaw
from opsocket_conformance.operators.cache.checks import CacheCopyBlocks, CacheMove, CacheRead, CacheWrite
from opsocket_conformance.operators.matmul.dequantize import Dequantize
from opsocket_conformance.operators.matmul.embedding import Embedding
from opsocket_conformance.operators.matmul.grouped_matmul import GroupedMatmul
from opsocket_conformance.operators.matmul.matmul import Matmul
from opsocket_conformance.operators.matmul.quantize_activation import QuantizeActivation
from opsocket_conformance.operators.merge_states import MergeStates
from opsocket_conformance.operators.moe_route import MoERoute
from opsocket_conformance.operators.rms_norm import RMSNorm
from opsocket_conformance.operators.rope import Rope
from opsocket_conformance.operators.sample import Sample
from opsocket_conformance.operators.silu_mul import SiluMul
from opsocket_conformance.operators.take_rows import TakeRows
from opsocket_conformance.preconditions.negative import Negative

CHECKS: Final[tuple[type[Check], ...]] = (
    Attention,
    AttentionLaw,
    MergeStates,
    CacheWrite,
    CacheRead,
    CacheMove,
    CacheCopyBlocks,
    Matmul,
    GroupedMatmul,
    Embedding,
    Dequantize,
    QuantizeActivation,
    RMSNorm,
    Rope,
    SiluMul,
    Add,
    TakeRows,
    MoERoute,
    Argmax,
    Sample,
    Negative,
)
"""Every kind of case."""
