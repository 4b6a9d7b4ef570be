"""What can be asked of a backend, and how each answer is judged."""

from __future__ import annotations

from typing import Final

from opsocket_conformance.case import Check
from opsocket_conformance.checks.attention import Attention
from opsocket_conformance.checks.attention_laws import AttentionLaw
from opsocket_conformance.checks.cache import CacheCopyBlocks, CacheMove, CacheRead, CacheWrite
from opsocket_conformance.checks.matmul import Dequantize, Embedding, GroupedMatmul, Matmul, QuantizeActivation
from opsocket_conformance.checks.merge import MergeStates
from opsocket_conformance.checks.model import Add, MoERoute, RMSNorm, Rope, SiluMul, TakeRows
from opsocket_conformance.checks.negative import Negative
from opsocket_conformance.checks.sampling import Argmax, Sample

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
