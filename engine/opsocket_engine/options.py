"""What a caller decides about an engine before it is built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from opsocket.operators import ContractError, KVFormat, Numerics
from opsocket.operators.dtypes import check_float
from opsocket.operators.layout import Granularity, KVCode

if TYPE_CHECKING:
    from opsocket.runtime.config import EngineConfig


ACTIVATIONS = ("none", "i8_token", "i8_g32")
"""What activations can be multiplied as."""

NUMERICS = ("exact", "fast")
"""What kernels may do inside."""


def parse_kv_format(text: str) -> KVFormat:
    """A cache's element format from "code" or "code/granularity".

    A code alone takes the granularity that needs nothing from the caller: token_head for integers, none for floats.
    Static granularities (tensor, head, channel) need calibrated scales, which this engine doesn't have: ContractError.
    """
    code, _, granularity = text.partition("/")
    granularity = granularity or ("token_head" if code in ("i8", "i4", "i2") else "none")
    if code not in get_args(KVCode) or granularity not in get_args(Granularity):
        want = f"CODE or CODE/GRANULARITY, of {', '.join(get_args(KVCode))} and {', '.join(get_args(Granularity))}"
        raise ContractError("kv_format", want, repr(text))
    kv_format = KVFormat(cast(KVCode, code), cast(Granularity, granularity))
    if kv_format.is_static:
        raise ContractError("kv_format", "a granularity whose scales are computed on write, or none", repr(text))
    return kv_format


def kv_format_name(text: str) -> str:
    """The same format under the name that the runtime's configuration has for it."""
    kv_format = parse_kv_format(text)
    return kv_format.code if kv_format.granularity == "none" else f"{kv_format.code}/{kv_format.granularity}"


@dataclass(frozen=True)
class EngineOptions:
    """Settings of one engine.

    dtype: of activations: f32, bf16 or f16. activations: what they are multiplied as by weights that have codes: "none"
    (as they are), or int8 codes with a scale for each token ("i8_token") or each 32 columns ("i8_g32"); see
    `QuantFormat.activation`. Weights whose own format states int8 activations have those. kv_format: see
    `parse_kv_format`. numerics: what kernels may do inside: "exact", nothing that loses beyond sums in f32; "fast", as
    matrix units, round probabilities, sinks, weights' scales and dequantized numbers to `dtype`, cut off sums,
    approximate exp and tanh (`permitted`). block_size: tokens per cache block. num_blocks: blocks of each layer's
    cache; None takes `memory_fraction` of the device's free memory, but no more than `max_batch` sequences of
    `max_context` tokens fill. max_batch: sequences in one step. max_step_tokens: tokens in one step, decodes and
    prompt chunks together. max_context: tokens of one sequence; None is the model's own limit. prefix_sharing: whether
    sequences share the blocks of equal beginnings. capture: whether steps are recorded and replayed where the
    session can: decode steps for each number of sequences; all others where graphs run on any number of rows, elsewhere
    full ones of `max_step_tokens`. replay_steps: so many decode steps run in one replay, and their
    tokens come out together, where no sequence has penalties and the steps together take 50 ms at most
    (`engine.FLOW_S`). seed: of requests that name none.
    """

    dtype: str = "f32"
    activations: str = "none"
    kv_format: str = "f32"
    numerics: str = "exact"
    block_size: int = 16
    num_blocks: int | None = None
    memory_fraction: float = 0.25
    max_batch: int = 16
    max_step_tokens: int = 512
    max_context: int | None = None
    prefix_sharing: bool = True
    capture: bool = True
    replay_steps: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        check_float(self.dtype, "dtype")
        parse_kv_format(self.kv_format)
        if self.activations not in ACTIVATIONS:
            raise ContractError("activations", f"one of {list(ACTIVATIONS)}", repr(self.activations))
        if self.numerics not in NUMERICS:
            raise ContractError("numerics", f"one of {list(NUMERICS)}", repr(self.numerics))
        for name in ("block_size", "num_blocks", "max_batch", "max_context", "replay_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ContractError(name, "at least 1", value)
        if not 0 < self.memory_fraction <= 1:
            raise ContractError("memory_fraction", "more than 0 and at most 1", self.memory_fraction)
        if self.max_step_tokens < self.max_batch:
            want = f"at least max_batch={self.max_batch}, so that every sequence can decode in one step"
            raise ContractError("max_step_tokens", want, self.max_step_tokens)

    @property
    def permitted(self) -> Numerics:
        """`numerics` as requests state it."""
        if self.numerics == "exact":
            return Numerics()
        dtype = cast(Literal["f32", "f16", "bf16"], self.dtype)
        return Numerics(dtype, "approx", "approx", "f32_truncating", dequantized=dtype, sinks=dtype, scales=dtype)

    @classmethod
    def of(cls, config: EngineConfig, **settings: Any) -> EngineOptions:
        """Options from the runtime's configuration; `settings` and the defaults here fill in what it leaves open."""
        names = {"max_tokens": "max_step_tokens"}
        configured = {names.get(key, key): value for key, value in vars(config).items() if value is not None}
        return cls(**(settings | configured))
