"""The cases of the contract: laws in every type; growth where a step spends its calls, in the full tier everywhere."""

from __future__ import annotations

from collections.abc import Iterator

from opsocket_conformance.case import Case
from opsocket_conformance.contract.batch import ROWS, BatchInvariant
from opsocket_conformance.contract.growth import Allocation, Growth
from opsocket_conformance.contract.laws import LAWS, Contract
from opsocket_conformance.operators.activations import DTYPES
from opsocket_conformance.preconditions.calls import CALLS


def cases() -> Iterator[Case]:
    for dtype in DTYPES:
        for law in LAWS:
            yield Case(Contract(law, dtype))
        for op in ROWS:
            yield Case(BatchInvariant(op, dtype), 0, "smoke" if op == "attention" else "default")
        for w in ("i4_g64", "q4_0", "i8_channel_a8", "q4_1_a8", "i4_g64_a8g32"):
            yield Case(BatchInvariant("matmul", dtype, w))
        for kv in ("i8.token_head", "f8e4m3fn"):
            yield Case(BatchInvariant("attention", dtype, kv=kv))
    for call in ("decode", "matmul", "cache_write", "rms_norm"):
        yield Case(Growth(call, calls=2000 if call == "decode" else 10000))
        yield Case(Growth(call, of="plans"))
        yield Case(Allocation(call))
    for call in ("decode", *CALLS):
        # Prefill takes milliseconds a call: a leak of each call shows in 2000 of them as well.
        calls = 2000 if call.startswith("attention") else 10000
        yield Case(Growth(call, calls=calls), 0, "full")
        yield Case(Growth(call, of="plans"), 0, "full")
        yield Case(Allocation(call), 0, "full")
