"""SmolLM2 from its GGUF file against transformers' Llama in f32 with the same weights, dequantized."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket_engine.checkpoint import open_checkpoint
from opsocket_engine.locate import locate
from opsocket_engine.sampling import SamplingParams
from opsocket_engine.tokenizer import load_tokenizer

pytestmark = pytest.mark.model

PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a small village by the sea,",
    "def fibonacci(n):\n",
    "Water boils at",
    "<|im_start|>user\nWrite a haiku about rain.<|im_end|>\n<|im_start|>assistant\n",
    "1, 2, 3, 4, 5,",
    "The most important thing about learning a language is",
    "Dear Sir or Madam,\n\nI am writing to",
)


@pytest.fixture(scope="module")
def smollm2():
    files = locate("smollm2")
    return open_checkpoint(files), load_tokenizer(files)


@pytest.fixture(scope="module")
def smollm2_transformers(smollm2, transformers_llama):
    return transformers_llama(smollm2[0])


@pytest.fixture(scope="module")
def prompts(smollm2):
    return [smollm2[1].encode(prompt, parse_special=True) for prompt in PROMPTS]


@pytest.fixture(scope="module")
def generated(session, generate_ids, smollm2, prompts):
    params = SamplingParams(max_tokens=48, ignore_eos=True)
    return generate_ids(session, smollm2[0], prompts, params, max_batch=8)[0]


def test_logits_equal_transformers(
    session, smollm2, prompts, smollm2_transformers, transformers_logits, engine_logits, record_property
):
    worst = 0.0
    for got, prompt in zip(engine_logits(session, smollm2[0], prompts), prompts, strict=True):
        want = transformers_logits(smollm2_transformers, prompt)
        worst = max(worst, float(np.abs(got - want).max()))
    record_property("max_abs_difference", worst)
    assert worst < 1e-3


def test_every_token_is_the_one_that_transformers_picks(
    prompts, generated, smollm2_transformers, transformers_logits, record_property
):
    """At every position of 8 texts, the token generated is the one that transformers would pick after the same text;
    so, by induction, the texts are those of transformers' greedy generation."""
    margins = []
    for prompt, tokens in zip(prompts, generated, strict=True):
        logits = transformers_logits(smollm2_transformers, [*prompt, *tokens])[len(prompt) - 1 : -1]
        assert logits.argmax(-1).tolist() == list(tokens)
        top = np.partition(logits, -2)[:, -2:]
        margins.append(float((top[:, 1] - top[:, 0]).min()))
    record_property("smallest_margin", min(margins))


def test_a_text_is_the_one_that_transformers_generates(prompts, generated, smollm2_transformers):
    """The same once without induction, through transformers' own loop and cache."""
    import torch

    prompt = torch.tensor([prompts[1]])
    want = smollm2_transformers.generate(prompt, max_new_tokens=48, min_new_tokens=48, do_sample=False, pad_token_id=0)
    assert list(generated[1]) == want[0, len(prompts[1]) :].tolist()


@pytest.mark.parametrize("weight_format", ["i8_channel_a8", "awq_i4_g64", "gptq_v1_i4_g64_act", "i4_g32_z"])
def test_requantized(
    weight_format,
    session,
    smollm2,
    prompts,
    requantized,
    generate_ids,
    transformers_llama,
    transformers_logits,
    record_property,
):
    """The same weights in a format from elsewhere: each token is, within rounding, transformers' choice.

    i8_channel_a8 rounds activations too, which transformers here does not: the slack is what that costs, on the average
    of all tokens, since a single one may be any of several when codes differ by one.
    """
    checkpoint = requantized(smollm2[0], weight_format)
    tokens, _ = generate_ids(session, checkpoint, prompts[:4], SamplingParams(max_tokens=8, ignore_eos=True))
    model = transformers_llama(checkpoint)
    rounds = weight_format.endswith("_a8")
    behind = []
    for prompt, generated in zip(prompts, tokens, strict=False):
        logits = transformers_logits(model, [*prompt, *generated])[len(prompt) - 1 : -1]
        behind.append(logits.max(-1) - logits[np.arange(8), list(generated)])
    record_property("furthest_behind", float(np.max(behind)))
    record_property("behind_on_average", float(np.mean(behind)))
    assert np.mean(behind) < 0.25 if rounds else np.max(behind) < 1e-3
