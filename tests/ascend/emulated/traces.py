"""The golden traces: what torch_npu asks of CANN's operators in chosen cases of the suite, as text without addresses.

`python tests/ascend/emulated/traces.py` writes them anew; `test_traces.py` compares. Only products, the casts of their
weights and the vendor's fused operators are kept: the rest is torch's own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from opsocket.operators import Session
from opsocket_conformance.case import parse_case
from opsocket_conformance.checks import CHECKS
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict

FILE = Path(__file__).with_name("traces.json")
_KEPT = ("attention", "formats", "fused", "products")

_BF16 = "q=bf16,prob=bf16,exp=approx,acc=f32_truncating"
_F16 = "q=f16,prob=f16,exp=approx,acc=f32_truncating"
_W4A16 = "dtype=f16,acc=f32_truncating,deq=f16"
_ROUNDED = "acc=f32_truncating,deq=bf16,scl=bf16"
CASES = (
    *(
        f"attention[hq=14,hkv=2,d=64,bs=128,batch={batch},x=normal,lse=1,{_BF16}]#0"
        for batch in ("decode", "tail", "edges", "prefill", "chunk", "mixed", "short", "verify", "shared", "long")
    ),
    f"attention[hq=14,hkv=2,d=128,bs=256,batch=mixed,x=peaky,{_F16}]#0",
    f"attention[hq=14,hkv=2,d=64,bs=128,batch=chunk,x=normal,mask=full,{_F16}]#0",
    f"attention[hq=14,hkv=2,d=64,bs=128,batch=decode,x=needle,strided=1,fresh=1,{_BF16}]#0",
    *(
        f"attention[hq=14,hkv=2,d=64,bs=128,batch={batch},x=normal,left={left},{_BF16}]#0"
        for batch, left in (("decode", 7), ("long", 40), ("mixed", 0))
    ),
    f"attention[hq=14,hkv=2,d=64,bs=128,kv=i8.token_head,batch=chunk,x=normal,deq=bf16,{_BF16}]#0",
    *(
        f"attention[hq=16,hkv=1,d=576,dv=512,latent=1,bs=128,batch={batch},x=normal,lse=1,{_BF16}]#0"
        for batch in ("decode", "prefill", "verify")
    ),
    *(
        f"attention[hq=14,hkv=2,d=64,bs=128,batch={batch},x=normal,{knobs}sinks=1,snk=bf16,{_BF16}]#0"
        for batch, knobs in (("decode", ""), ("chunk", ""), ("decode", "left=7,"))
    ),
    *(
        f"grouped_matmul[experts=5,m=23,n=40,k=256,w={w},dtype={dtype},acc=f32_truncating,deq={dtype}]#0"
        for w, dtype in (("bf16", "bf16"), ("f16", "f16"), ("i4_g64", "f16"), ("i8_channel_a8", "f16"))
    ),
    *(
        f"grouped_matmul[experts=5,m=23,n=40,k=256,w={w},dtype=bf16,{_ROUNDED}]#0"
        for w in ("i8_channel", "gptq_v2_i4_g64")
    ),
    "silu_mul[t=7,dtype=bf16]#0",
    "rope[t=7,dtype=bf16]#0",
    "rope[t=7,dtype=f16,interleaved=1,rotary=32]#0",
    "cache_write[hkv=1,d=576,dv=512,latent=1,bs=128,dtype=bf16]#0",
    "cache_write[hkv=3,d=64,bs=16,dtype=bf16]#0",
    "cache_write[hkv=3,d=64,bs=128,dtype=f16]#0",
    "matmul[m=3,n=136,k=256,w=bf16,dtype=bf16,acc=f32_truncating]#0",
    "matmul[m=3,n=136,k=256,w=bf16,dtype=bf16,bias=1,acc=f32_truncating]#0",
    f"matmul[m=3,n=136,k=256,w=gptq_v2_i4_g64,{_W4A16}]#0",
    f"matmul[m=5,n=136,k=256,w=gptq_v1_i4_g32_act,{_W4A16}]#0",
    f"matmul[m=3,n=136,k=256,w=awq_i4_g128,{_W4A16}]#0",
    f"matmul[m=3,n=136,k=256,w=i4_g64_z,{_W4A16}]#0",
    f"matmul[m=3,n=136,k=256,w=q8_0,{_W4A16}]#0",
    f"matmul[m=37,n=136,k=256,w=i8_channel,{_W4A16},scl=f16]#0",
    *(f"matmul[m=1,n=72,k=512,w={w},dtype=bf16,bias=1,{_ROUNDED}]#0" for w in ("i8_channel", "q8_0", "gptq_v2_i4_g64")),
    "matmul[m=5,n=136,k=256,w=i8_channel_a8,dtype=bf16,bias=1]#0",
    "matmul[m=5,n=136,k=256,w=i8_channel_a8,dtype=f16]#0",
    "quantize_activation[m=5,k=256,dtype=bf16]#0",
    "rms_norm[t=7,dtype=bf16,width=576,heads=0,residual=1]#0",
    "rms_norm[t=7,dtype=f16,width=64,heads=5]#0",
)


def record(session: Session, text: str) -> list[str]:
    """The calls of one case, in their order. It has to pass: a trace of something wrong would be kept as right."""
    from opsocket_ascend.emulator import calls

    seen: list[str] = []

    def keep(operator: str, arguments: dict[str, Any]) -> None:
        if calls.family(operator) in _KEPT:
            seen.append(calls.written(operator, arguments))

    end = calls.observe(keep)
    try:
        result = run_case(parse_case(text, CHECKS), session, 0, 120.0)
    finally:
        end()
    if result.verdict is not Verdict.PASS:
        raise AssertionError(f"{text}: {result.verdict.name}: {result.messages or result.reasons}")
    return seen


def main() -> None:
    import opsocket

    with opsocket.open("ascend:0") as session:
        traces = {text: record(session, text) for text in CASES}
    FILE.write_text(json.dumps(traces, indent=1) + "\n")
    print(f"{sum(map(len, traces.values()))} calls of {len(traces)} cases: {FILE}")


if __name__ == "__main__":
    main()
