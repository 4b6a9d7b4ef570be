"""Every weight format, cache format and activation type has a model through it, and each does what it says it does.

Compared with transformers' Llama in f32 that has the dequantized weights and, where a format rounds activations or keys
and values, rounds the same at the same place. Bounds are absolute, on logits with a standard deviation near 1.
"""

from __future__ import annotations

import numpy as np
import pytest

from opsocket.operators import EmbeddingSpec, Request
from opsocket.operators.torch_session import TORCH_DTYPES
from opsocket.quantization import FORMATS, get_format
from opsocket_engine.canonical import matrix_shapes
from opsocket_engine.config import RopeConfig
from opsocket_engine.options import parse_kv_format
from opsocket_engine.sampling import SamplingParams

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

SHAPE = {
    "hidden_size": 256,  # K-quants come in runs of 256 columns
    "intermediate_size": 512,
    "num_q_heads": 8,
    "num_kv_heads": 2,
    "head_dim": 32,
    "rope": RopeConfig(theta=10000.0, rotary_dim=32),
    "vocab_size": 64,
    "num_layers": 1,
}
PROMPTS = [np.random.default_rng(4).integers(0, 64, length).tolist() for length in (1, 19, 33)]


def stored_as(tiny, session, weight_format: str):
    """A small model with every matrix in one format; the embedding in f32 where no kernel looks rows up in it."""
    shapes = matrix_shapes(tiny(**SHAPE).config)
    formats = dict.fromkeys(shapes, weight_format)
    if not session.supports(Request(EmbeddingSpec(weight_format, *shapes["embed_tokens"]))):
        formats["embed_tokens"] = "f32"
    return tiny(formats, **SHAPE)


def fake_quantize(x, most: float):
    """x rounded to codes from -most to most with one scale for each vector of the last dimension."""
    scale = x.abs().amax(-1, keepdim=True) / most
    codes = torch.where(scale > 0, x / scale, torch.zeros_like(x)).round().clamp(-most, most)
    return codes * scale


def round_activations(model, activation: str) -> None:
    """What a format with int8 activations does to the input of every product."""

    def rounded(module, inputs):
        (x,) = inputs
        groups = x.unflatten(-1, (-1, 32 if activation == "i8_g32" else x.shape[-1]))
        return (fake_quantize(groups, 127).reshape(x.shape),)

    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_pre_hook(rounded)


class RoundedCache(transformers.DynamicCache):
    """Stores keys and values as a cache format would, read back as f32."""

    def __init__(self, kv_format: str) -> None:
        super().__init__()
        self._format = parse_kv_format(kv_format)

    def update(self, keys, values, *args, **kwargs):
        return super().update(self._rounded(keys), self._rounded(values), *args, **kwargs)

    def _rounded(self, x):
        if self._format.granularity == "token_head":
            if self._format.code.startswith("i"):
                return fake_quantize(x, self._format.max_code)
            scale = x.abs().amax(-1, keepdim=True) / self._format.max_code
            return (x / scale).to(torch.float8_e4m3fn).float() * scale
        return x.to(TORCH_DTYPES[self._format.code]).float()


def worst(got, want) -> float:
    return max(float(np.abs(g - w).max()) for g, w in zip(got, want, strict=True))


def check_greedy(session, generate_ids, transformers_logits, checkpoint, model, slack: float, **options) -> None:
    """Each token that the engine generates is within `slack` of the best, by the logits of transformers."""
    tokens, _ = generate_ids(session, checkpoint, PROMPTS, SamplingParams(max_tokens=8, ignore_eos=True), **options)
    for prompt, generated in zip(PROMPTS, tokens, strict=True):
        logits = transformers_logits(model, [*prompt, *generated])[len(prompt) - 1 : -1]
        assert len(generated) == 8
        assert (logits.max(-1) - logits[np.arange(8), generated]).max() < slack


@pytest.mark.parametrize("weight_format", [f.id for f in FORMATS])
def test_weight_format(
    weight_format,
    session,
    tiny,
    engine_logits,
    generate_ids,
    transformers_llama,
    transformers_logits,
    record_property,
):
    checkpoint = stored_as(tiny, session, weight_format)
    model = transformers_llama(checkpoint)
    bound = 5e-5
    activation = get_format(weight_format).activation
    if activation != "none":
        round_activations(model, activation)
        # Where two sums differ in their last bit an activation may round to the next code. Sums over groups have more
        # such bits than the one integer sum of a row: one flip in these models was seen to move a logit by 0.0224.
        bound = 2e-2 if weight_format == "i8_channel_a8" else 4e-2
    want = [transformers_logits(model, prompt) for prompt in PROMPTS]
    assert min(w.std() for w in want) > 0.3
    difference = worst(engine_logits(session, checkpoint, PROMPTS), want)
    record_property("max_abs_difference", difference)
    assert difference < bound
    check_greedy(session, generate_ids, transformers_logits, checkpoint, model, 2 * bound)


@pytest.mark.parametrize(
    "kv_format", ["f32", "f16", "bf16", "i8", "i4", "f8e4m3fn", "f8e4m3fn/token_head", "f8e5m2", "i2"]
)
def test_kv_format(kv_format, session, tiny, engine_logits, generate_ids, transformers_llama, record_property):
    checkpoint = tiny(**(SHAPE | {"num_layers": 2}))
    model = transformers_llama(checkpoint)
    bound = 5e-5 if kv_format == "f32" else 2e-2  # a key may round to the next code
    want = []
    for prompt in PROMPTS:
        with torch.no_grad():
            cache = RoundedCache(kv_format)
            want.append(model(torch.tensor([prompt]), past_key_values=cache, use_cache=True).logits[0].numpy())
    difference = worst(engine_logits(session, checkpoint, PROMPTS, kv_format=kv_format), want)
    record_property("max_abs_difference", difference)
    assert difference < bound
    tokens, stats = generate_ids(
        session, checkpoint, PROMPTS, SamplingParams(max_tokens=8, ignore_eos=True), kv_format=kv_format
    )
    assert all(len(generated) == 8 for generated in tokens)
    bits = parse_kv_format(kv_format).bits
    scale_bytes = 4 if "/" in kv_format or kv_format.startswith("i") else 0
    assert stats.token_bytes == 2 * 2 * 2 * (32 * bits // 8 + scale_bytes)


@pytest.mark.parametrize(("dtype", "bound"), [("f32", 5e-5), ("f16", 2e-2), ("bf16", 2e-1)])
def test_activation_type(
    dtype, bound, session, tiny, engine_logits, transformers_llama, transformers_logits, record_property
):
    checkpoint = tiny(**(SHAPE | {"num_layers": 2}))
    model = transformers_llama(checkpoint)
    got = engine_logits(session, checkpoint, PROMPTS, dtype=dtype, kv_format=dtype)
    difference = worst(got, [transformers_logits(model, prompt) for prompt in PROMPTS])
    record_property("max_abs_difference", difference)
    assert difference < bound
    if dtype != "f32":
        assert difference > 5e-5, "a narrow type that changes nothing is not in use"
