"""Which of a run's cases are timed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Final, cast

from opsocket_conformance.case import Case, Check
from opsocket_conformance.operators.add import Add
from opsocket_conformance.operators.argmax import Argmax
from opsocket_conformance.operators.attention.knobs import Attention
from opsocket_conformance.operators.cache.checks import CacheCopyBlocks, CacheMove, CacheRead, CacheWrite
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
from opsocket_conformance.traffic.check import Traffic
from opsocket_conformance.verdicts import Result, Verdict

TIMED: Final[tuple[type[Check], ...]] = (
    Attention, MergeStates, CacheWrite, CacheRead, CacheMove, CacheCopyBlocks, Matmul, GroupedMatmul, Embedding,
    QuantizeActivation, RMSNorm, Rope, SiluMul, Add, TakeRows, MoERoute, MoESort, MoECombine, Argmax, Sample,
    Traffic,
)  # fmt: skip
"""The kinds whose cases are calls of one operator: not laws, captures, refusals, contracts or loading."""

_BY_ITSELF: Final = (Attention, CacheWrite, CacheRead, Matmul, Embedding, RMSNorm, Rope, SiluMul, Add, TakeRows)
"""The kinds of `TIMED` that are timed without being named."""
_TYPES: Final = ("bf16", "f16", "f32")
_ASKED: Final = frozenset(
    {"t", "m", "n", "k", "w", "width", "heads", "hq", "hkv", "d", "bs", "q", "kv", "dtype", "to", "batch"}
)
"""Fields that say how much and of which type; any other one, where it is not as by default, makes a case special."""
_BATCHES: Final = ("tail", "decode", "prefill", "long")


def choose(cases: Sequence[Case], results: Sequence[Result], text: str = "") -> list[Case]:
    """The cases to be timed, in their order: passed, and of a kind in `TIMED`.

    By themselves: the plain ones of the smoke tier, and attention over the batches tail and long, in the first of bf16,
    f16, f32 in which any of these passed. text: and every other whose id contains it.
    """
    by_id: Mapping[str, Result] = {result.case: result for result in results}
    passed = [case for case in cases if by_id[case.id].verdict is Verdict.PASS and _is_timed(case)]
    plain = [case for case in passed if _is_plain(case)]
    held = {_type(case.check) for case in plain}
    first = next((dtype for dtype in _TYPES if dtype in held), "")
    chosen = {case.id for case in plain if _type(case.check) == first}
    return [case for case in passed if case.id in chosen or (text and text in case.id)]


def _is_timed(case: Case) -> bool:
    check = case.check
    if isinstance(check, Attention) and check.latent and not check.bs:
        return False  # V is a view of K there, so that the bytes are not told by the arrays
    return type(check) in TIMED and case.tier != "large"


def _is_plain(case: Case) -> bool:
    check = case.check
    if not isinstance(check, _BY_ITSELF) or case.draw:
        return False
    fields = dataclasses.fields(cast(Any, check))
    if any(f.name not in _ASKED and getattr(check, f.name) != f.default for f in fields):
        return False
    if isinstance(check, Attention):
        usual = (check.hq, check.hkv, check.d, check.bs) == (14, 2, 64, 16)
        return usual and check.batch in _BATCHES and (case.tier == "smoke" or not check.kv)
    return case.tier == "smoke"


def _type(check: Check) -> str:
    return check.q if isinstance(check, Attention) else str(getattr(check, "dtype", ""))
