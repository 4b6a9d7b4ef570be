"""The choices of all tokens, sorted by expert."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from opsocket.operators import MoESortPlan, MoESortSpec
from opsocket_triton.launch import launch


@triton.jit
def sort_choices(experts, rows, expert_offsets, slots, choices, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    """rows i64[choices], expert_offsets i64[E + 1], slots i64[choices] of experts i64[choices], TOP_K for each token.

    Program e counts the choices of experts before e, behind which those of e follow in their order: it goes through
    all of them twice, and needs no other program's count. Program E, whose expert nobody chose, has all before it.
    """
    expert = tl.program_id(0)
    lane = tl.arange(0, BLOCK)
    before = tl.zeros([BLOCK], tl.int32)
    for start in range(0, choices, BLOCK):
        at = start + lane
        inside = at < choices
        found = tl.load(experts + at, mask=inside, other=0)
        before += (inside & (found < expert)).to(tl.int32)
    first = tl.sum(before, 0)
    tl.store(expert_offsets + expert, first.to(tl.int64))
    for start in range(0, choices, BLOCK):
        at = start + lane
        mine = (tl.load(experts + at, mask=at < choices, other=-1) == expert).to(tl.int32)
        slot = (first + tl.cumsum(mine, 0) - 1).to(tl.int64)
        tl.store(slots + at, slot, mask=mine != 0)
        tl.store(rows + slot, (at // TOP_K).to(tl.int64), mask=mine != 0)
        first += tl.sum(mine, 0)


class TritonMoESort(MoESortPlan):
    """One launch without an atomic: a program for each expert, which reads all choices, from L2 after the first. An
    expert that there is not is undefined, and `checked: deep` finds it."""

    capture_level = "any"

    def _run(self, experts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        spec = self.request.spec
        assert isinstance(spec, MoESortSpec)
        choices = experts.numel()
        rows = torch.empty(choices, dtype=torch.int64, device=experts.device)
        expert_offsets = torch.empty(spec.num_experts + 1, dtype=torch.int64, device=experts.device)
        slots = torch.empty(experts.shape, dtype=torch.int64, device=experts.device)
        block = min(2048, max(128, triton.next_power_of_2(choices)))
        launch(
            sort_choices,
            (spec.num_experts + 1,),
            warps=max(4, block // 256),
            experts=experts,
            rows=rows,
            expert_offsets=expert_offsets,
            slots=slots,
            choices=choices,
            TOP_K=spec.top_k,
            BLOCK=block,
        )
        return rows, expert_offsets, slots
