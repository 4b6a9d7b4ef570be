"""Every kind of case, by which ids are read."""

from __future__ import annotations

from typing import Final

from opsocket_conformance.case import Check
from opsocket_conformance.contract.batch import BatchInvariant
from opsocket_conformance.contract.growth import Allocation, Growth
from opsocket_conformance.contract.laws import Contract
from opsocket_conformance.large.cache import LargeCache
from opsocket_conformance.large.rows import LargeRows
from opsocket_conformance.operators.add import Add
from opsocket_conformance.operators.argmax import Argmax
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.attention.laws import AttentionLaw
from opsocket_conformance.operators.cache.checks import CacheCopyBlocks, CacheMove, CacheRead, CacheWrite
from opsocket_conformance.operators.capture.calls import Capture
from opsocket_conformance.operators.capture.fast import CaptureFast
from opsocket_conformance.operators.capture.refusals import CaptureRefusal
from opsocket_conformance.operators.capture.steps import CaptureStep
from opsocket_conformance.operators.matmul.dequantize import Dequantize
from opsocket_conformance.operators.matmul.embedding import Embedding
from opsocket_conformance.operators.matmul.grouped_matmul import GroupedMatmul
from opsocket_conformance.operators.matmul.matmul import Matmul
from opsocket_conformance.operators.matmul.quantize_activation import QuantizeActivation
from opsocket_conformance.operators.merge_states import MergeStates
from opsocket_conformance.operators.moe_combine import MoECombine
from opsocket_conformance.operators.moe_route import MoERoute
from opsocket_conformance.operators.moe_sort import MoESort
from opsocket_conformance.operators.rms_norm import RMSNorm
from opsocket_conformance.operators.rope import Rope
from opsocket_conformance.operators.sample import Sample
from opsocket_conformance.operators.silu_mul import SiluMul
from opsocket_conformance.operators.take_rows import TakeRows
from opsocket_conformance.preconditions.negative import Negative
from opsocket_conformance.traffic.check import Traffic

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
    MoESort,
    MoECombine,
    Argmax,
    Sample,
    Capture,
    CaptureStep,
    CaptureFast,
    CaptureRefusal,
    Negative,
    Contract,
    BatchInvariant,
    Growth,
    Allocation,
    Traffic,
    LargeCache,
    LargeRows,
)
