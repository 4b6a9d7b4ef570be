"""What an engine has done, in numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass
class EngineStats:
    """Counts since the engine was made; blocks and bytes of its KV cache and weights.

    prompt_tokens: computed as part of a prompt, or again after a preemption. decode_tokens: computed one by one after
    it. generated_tokens: chosen; the first of each sample comes out of its prompt's step. shared_tokens: found in the
    prefix cache instead of computed. captured_steps: of all steps, those that a graph ran. prompt_seconds,
    decode_seconds: a step that does both counts for each in proportion to its tokens. step_bytes: of the weights, what
    a step reads.
    """

    num_blocks: int
    block_size: int
    cache_bytes: int
    weight_bytes: int
    step_bytes: int
    used_blocks: int = 0
    peak_blocks: int = 0
    steps: int = 0
    captured_steps: int = 0
    prompt_tokens: int = 0
    shared_tokens: int = 0
    decode_tokens: int = 0
    generated_tokens: int = 0
    preemptions: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0

    @property
    def prompt_rate(self) -> float:
        """Prompt tokens per second; 0 where none was computed."""
        return self.prompt_tokens / self.prompt_seconds if self.prompt_seconds else 0.0

    @property
    def decode_rate(self) -> float:
        """Decoded tokens per second; 0 where none was."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token in all layers."""
        return self.cache_bytes // (self.num_blocks * self.block_size)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {
            "prompt_tokens_per_second": self.prompt_rate,
            "decode_tokens_per_second": self.decode_rate,
            "token_bytes": self.token_bytes,
        }
