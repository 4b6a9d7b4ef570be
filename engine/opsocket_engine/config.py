"""A decoder's shape and settings, whatever file they came from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from opsocket.operators import RopeScaling
from opsocket.operators.errors import ContractError

Architecture = Literal["llama", "qwen2", "qwen3", "qwen3moe"]

# No model comes near these. A header that claims more is damaged or hostile: refused before anything is sized by it.
MAX_LAYERS = 4096
MAX_WIDTH = 1 << 20
MAX_HEADS = 1 << 14
MAX_HEAD_DIM = 1 << 12
MAX_EXPERTS = 1 << 12
MAX_VOCAB = 1 << 24
MAX_POSITION = 1 << 31


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding of the first `rotary_dim` channels of each head, in the terms of `RopeSpec`.

    theta: base of the frequencies. interleaved: channel pairs are (2i, 2i + 1), as the rows of GGUF files of the llama
    architecture are ordered for; else (i, i + rotary_dim / 2). scaling: None for none. frequency_factors: what each
    pair's frequency is divided by (GGUF's rope_freqs.weight), rotary_dim / 2 of them, or ().
    """

    theta: float
    rotary_dim: int
    interleaved: bool = False
    scaling: RopeScaling | None = None
    frequency_factors: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _within("rope.theta", self.theta, 1e-3, 1e15)
        _within("rope.rotary_dim", self.rotary_dim, 2, MAX_HEAD_DIM)
        if self.rotary_dim % 2:
            raise ContractError("rope.rotary_dim", "an even number", self.rotary_dim)
        if len(self.frequency_factors) not in (0, self.rotary_dim // 2):
            want = f"none or rotary_dim / 2 = {self.rotary_dim // 2} of them"
            raise ContractError("rope.frequency_factors", want, len(self.frequency_factors))
        for factor in self.frequency_factors:
            _within("rope.frequency_factors", factor, 1e-6, 1e6)


@dataclass(frozen=True)
class ExpertsConfig:
    """A mixture of experts (Shazeer et al. 2017) in place of every layer's MLP, in the terms of `MoERouteSpec`.

    Of num_experts, each token meets the top_k of largest probability, weighted by it; with renormalize, by its share of
    theirs.
    """

    num_experts: int
    top_k: int
    renormalize: bool

    def __post_init__(self) -> None:
        _within("experts.num_experts", self.num_experts, 1, MAX_EXPERTS)
        _within("experts.top_k", self.top_k, 1, self.num_experts)

    @property
    def share(self) -> float:
        """Of all experts' weights, what one token meets."""
        return self.top_k / self.num_experts


@dataclass(frozen=True)
class ModelConfig:
    """A decoder-only transformer: RMS norm, rotary embedding, grouped-query attention, gated MLP with SiLU.

    architecture names the family: qwen2 has biases on q, k and v, qwen3 and qwen3moe a norm on each head's q and k; the
    flags say so too, and are what a model is built by. experts: None where each layer has one MLP; intermediate_size is
    that of the MLP or of each expert. Attention's scale is head_dim^-0.5. vocab_size counts the rows of the
    embedding, which may be more than the tokenizer has. sliding_window: a query sees that many keys, itself included,
    in the layers that sliding_layers lists; None and () where every layer sees all. eos_ids: every token that ends a
    generation. Raises ContractError naming the field where the numbers don't fit together.
    """

    architecture: Architecture
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    rms_norm_eps: float
    rope: RopeConfig
    max_position: int
    tie_embeddings: bool
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[int, ...] = ()
    experts: ExpertsConfig | None = None
    bos_id: int | None = None
    eos_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise ContractError("architecture", f"one of {', '.join(get_args(Architecture))}", self.architecture)
        _within("hidden_size", self.hidden_size, 1, MAX_WIDTH)
        _within("intermediate_size", self.intermediate_size, 1, MAX_WIDTH)
        _within("num_layers", self.num_layers, 1, MAX_LAYERS)
        _within("num_q_heads", self.num_q_heads, 1, MAX_HEADS)
        _within("num_kv_heads", self.num_kv_heads, 1, MAX_HEADS)
        _within("head_dim", self.head_dim, 1, MAX_HEAD_DIM)
        _within("vocab_size", self.vocab_size, 1, MAX_VOCAB)
        _within("rms_norm_eps", self.rms_norm_eps, 0.0, 1.0)
        _within("max_position", self.max_position, 1, MAX_POSITION)
        if self.num_q_heads % self.num_kv_heads:
            raise ContractError("num_kv_heads", f"a divisor of num_q_heads={self.num_q_heads}", self.num_kv_heads)
        if self.experts is not None and self.mlp_bias:
            raise ContractError("mlp_bias", "False with experts", True)
        _within("num_q_heads * head_dim", self.num_q_heads * self.head_dim, 1, MAX_WIDTH)
        _within("rope.rotary_dim", self.rope.rotary_dim, 2, self.head_dim)
        if self.sliding_window is not None:
            _within("sliding_window", self.sliding_window, 1, MAX_POSITION)
        if bool(self.sliding_layers) != (self.sliding_window is not None):
            raise ContractError("sliding_layers", "some with a sliding_window, () without", self.sliding_layers)
        for layer in self.sliding_layers:
            _within("sliding_layers", layer, 0, self.num_layers - 1)
        for token in (*self.eos_ids, *(() if self.bos_id is None else (self.bos_id,))):
            _within("eos_ids and bos_id", token, 0, self.vocab_size - 1)

    def window(self, layer: int) -> int | None:
        """How many keys a query of that layer sees, itself included; None for all. `window_left` is one less."""
        return self.sliding_window if layer in self.sliding_layers else None


def _within(field: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ContractError(field, f"a number in {low:g}..{high:g}", value)
