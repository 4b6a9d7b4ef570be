"""A little of the suite's power: broken backends, each of which has to be found out, and by which cases."""

from __future__ import annotations

from dataclasses import replace
from itertools import count

import numpy as np
import pytest
import torch

from opsocket_conformance.operators.attention.oracle import attention
from opsocket_conformance.verdicts import Verdict

DECODE, CHUNK = "attention[]#0", "attention[batch=chunk,x=peaky]#0"
WINDOW = "attention[batch=chunk,x=needle,left=7]#0"
LSE = "attention[batch=mixed,lse=1]#0"


def _spec(**changes):
    """A request with some fields of its spec changed, by functions of the spec."""
    return lambda request: replace(
        request, spec=replace(request.spec, **{name: change(request.spec) for name, change in changes.items()})
    )


def _out(change):
    """The result's output, changed in place; padding rows left alone."""

    def result(plan, result, args):
        out = result[0] if isinstance(result, tuple) else result
        change(out[: int(plan.batch.q_indptr[-1])])
        return result

    return result


def _lse(change):
    def result(plan, result, args):
        change(result[1][: int(plan.batch.q_indptr[-1])])
        return result

    return result


def _field(name, change):
    return lambda batch: replace(batch, **{name: change(np.array(getattr(batch, name)))})


def _noise(out):
    out *= 1 + 1e-2 * torch.randn(out.shape, generator=torch.Generator().manual_seed(0))


def _truncate(out):
    """What a store of the upper half of an f32 would have given: one step towards zero, for half of the elements."""
    odd = torch.arange(out.numel()).reshape(out.shape) % 2 == 1
    bits = out.view(torch.int16)
    bits[odd] -= 1


FAULTS = {
    "zeros": ("attention", {"result": _out(torch.Tensor.zero_)}, (DECODE, CHUNK, LSE)),
    "nan": ("attention", {"result": _out(lambda out: out.fill_(torch.nan))}, (DECODE, CHUNK, LSE)),
    "stale output": ("attention", {"args": lambda args, kwargs: (args, kwargs | {"out": None})}, (DECODE, CHUNK, LSE)),
    "scale +1%": ("attention", {"request": _spec(scale=lambda s: s.scale * 1.01)}, (DECODE, CHUNK, WINDOW)),
    "scale 1/sqrt(d)": ("attention", {"request": _spec(scale=lambda s: s.head_dim_qk**-0.5)}, (DECODE, CHUNK, LSE)),
    "window +1": ("attention", {"request": _spec(window_left=lambda s: s.window_left + 1)}, (WINDOW,)),
    "window -1": ("attention", {"request": _spec(window_left=lambda s: s.window_left - 1)}, (WINDOW,)),
    "window ignored": ("attention", {"request": _spec(window_left=lambda s: None)}, (WINDOW,)),
    "not causal": ("attention", {"request": _spec(mask=lambda s: "full")}, (DECODE, CHUNK, LSE)),
    "LSE in base 2": ("attention", {"result": _lse(lambda lse: lse.div_(np.log(2)))}, (LSE,)),
    "block table off by one": (
        "attention",
        {"batch": _field("block_table", lambda table: np.where(table > 0, table - 1, table))},
        (DECODE, CHUNK, LSE),
    ),
    "last key dropped": ("attention", {"batch": _field("kv_lens", lambda n: np.maximum(n - 1, 0))}, (CHUNK, LSE)),
    "last key of long ones dropped": (
        "attention",
        {
            "batch": lambda b: replace(
                b, kv_lens=np.where(np.array(b.kv_lens) > 1024, np.array(b.kv_lens) - 1, b.kv_lens)
            )
        },
        ("attention[batch=needle,x=flat]#0", "attention[batch=longest,hq=7,hkv=1,x=flat]#0"),
    ),
    "heads in reverse": ("attention", {"args": lambda args, kwargs: ((args[0].flip(1), *args[1:]), kwargs)}, (CHUNK,)),
    "relative noise of 1%": ("attention", {"result": _out(_noise)}, (DECODE, CHUNK, LSE)),
    "truncating store": ("attention", {"result": _out(_truncate)}, (DECODE, CHUNK, LSE)),
    "input overwritten": ("attention", {"result": lambda plan, r, args: (args[0].zero_(), r)[1]}, (DECODE, CHUNK)),
    "softcap ignored": (
        "attention",
        {"request": _spec(softcap=lambda s: None)},
        ("attention[hq=9,hkv=3,bs=0,batch=chunk,x=saturate,cap=30.0]#0", "attention[cap=5.0]#0"),
    ),
    "sinks ignored": (
        "attention",
        {"args": lambda args, kwargs: (args, kwargs | {"sinks": kwargs["sinks"] - 1e30})},
        ("attention[sinks=1]#0", "attention[batch=short,sinks=1,lse=1]#0"),
    ),
    "slopes ignored": (
        "attention",
        {"args": lambda args, kwargs: (args, kwargs | {"alibi": kwargs["alibi"] * 0})},
        ("attention[alibi=1]#0", "attention[batch=mixed,alibi=1]#0"),
    ),
    "-1 is written too": (
        "cache_write",
        {"batch": _field("slots", lambda slots: _filled(slots))},
        ("cache_write[]#0", "cache_write[kv=f8e4m3fn]#0"),
    ),
    "slots off by one": (
        "cache_write",
        {"batch": _field("slots", lambda s: np.where(s < 0, s, (s + 1) % 112))},
        ("cache_write[]#0", "cache_write[kv=i8.channel]#0", "cache_write[kv=i4.token_head]#0"),
    ),
    "moves not buffered": (
        "cache_move",
        {"batch": lambda b: replace(b, src_slots=np.zeros_like(b.src_slots))},
        ("cache_move[]#0", "cache_move[how=swap]#0", "cache_move[how=across]#0"),
    ),
    "nibbles swapped": (
        "matmul",
        {"tensors": lambda t, request: t | {"codes": (t["codes"] >> 4 | t["codes"] << 4)}},
        ("matmul[w=i4_g64]#0", "matmul[w=i4_g32_z,m=1]#0", "dequantize[w=i4_g64]#0"),
    ),
    "zero point off by one": (
        "matmul",
        {"tensors": lambda t, request: t | {"zero": np.maximum(t["zero"], 1) - np.uint8(1)}},
        ("matmul[w=i4_g32_z]#0", "matmul[w=i2_g64_z]#0", "dequantize[w=i4_g128_z]#0"),
    ),
    "scale of the neighbour group": (
        "matmul",
        {"tensors": lambda t, request: t | {"scale": np.roll(t["scale"], 1, axis=-1)}},
        ("matmul[w=i4_g64]#0", "matmul[w=i8_channel_a8]#0", "dequantize[w=i2_g32]#0"),
    ),
    "weight scale +1%": (
        "matmul",
        {"tensors": lambda t, request: t | {"scale": (t["scale"] * 1.01).astype(t["scale"].dtype)}},
        ("matmul[w=i4_g64]#0", "matmul[w=i8_channel]#0", "matmul[w=i8_channel_a8]#0"),
    ),
}


def _filled(slots: np.ndarray) -> np.ndarray:
    """Skipped tokens go to slots that nothing else takes."""
    free = (i for i in count() if i not in set(slots.tolist()))
    return np.array([next(free) if slot < 0 else slot for slot in slots])


def _kills():
    return [
        pytest.param(op, hooks, case, id=f"{name}: {case}")
        for name, (op, hooks, cases) in FAULTS.items()
        for case in cases
    ]


@pytest.mark.parametrize(("op", "hooks", "case"), _kills())
def test_a_fault_is_found(judge, op, hooks, case):
    assert judge(case, op, **hooks).verdict is Verdict.FAIL


@pytest.mark.parametrize("case", sorted({case for _, _, cases in FAULTS.values() for case in cases}))
@pytest.mark.parametrize("seed", [0, 1])
def test_the_same_cases_pass_without_a_fault(judge, case, seed):
    result = judge(case, seed=seed)
    assert (result.verdict, result.messages) == (Verdict.PASS, ())


def test_small_faults_are_seen_by_the_filter_and_named(judge):
    result = judge(CHUNK, "attention", request=_spec(scale=lambda s: s.scale * 1.01))
    assert result.filters["scale +1%"].t == pytest.approx(1.0, abs=0.1)
    right = judge(CHUNK).filters["scale +1%"]
    assert right.credited
    assert abs(right.t) < 0.1


def test_a_backend_that_asks_the_oracle_is_red(judge):
    def ask(args, kwargs):
        attention(None)

    result = judge(DECODE, "attention", args=ask)
    assert result.verdict is Verdict.CRASH
    assert "OracleCalled" in result.messages[-1]
