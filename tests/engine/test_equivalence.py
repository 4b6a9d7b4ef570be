"""However a step is put together, a request gets the same tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from opsocket_engine.sampling import SamplingParams

LENGTHS = (1, 3, 16, 17, 33, 40, 5, 64)
TOKENS = 24
SAMPLED = SamplingParams(
    temperature=0.9,
    top_k=40,
    top_p=0.95,
    min_p=0.01,
    repetition_penalty=1.1,
    seed=11,
    max_tokens=TOKENS,
    ignore_eos=True,
)
GREEDY = SamplingParams(max_tokens=TOKENS, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return tiny(qkv_bias=True, qk_norm=True)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(3)
    shared = rng.integers(0, 128, 34).tolist()
    own = [rng.integers(0, 128, length).tolist() for length in LENGTHS]
    return [*own, [*shared, 5, 6], [*shared, 7], shared]


@pytest.fixture(scope="module", params=[GREEDY, SAMPLED], ids=["greedy", "sampled"])
def params(request):
    return request.param


@pytest.fixture(scope="module")
def alone(session, generate_ids, checkpoint, prompts, params):
    """Every prompt in an engine that does nothing else, and captures nothing."""
    settings = {"prefix_sharing": False, "capture": False}
    return [generate_ids(session, checkpoint, [prompt], params, **settings)[0][0] for prompt in prompts]


def test_a_sampled_text_needs_more_than_one_token(alone):
    assert all(len(tokens) == TOKENS for tokens in alone)
    assert len({token for tokens in alone for token in tokens}) > 20


def test_batched(session, generate_ids, checkpoint, prompts, params, alone):
    tokens, stats = generate_ids(session, checkpoint, prompts, params, max_batch=11, prefix_sharing=False)
    assert tokens == alone
    assert stats.steps == TOKENS
    assert stats.captured_steps == TOKENS
    assert stats.shared_tokens == stats.preemptions == 0


def test_continuous_batching_with_more_requests_than_places(session, generate_ids, checkpoint, prompts, params, alone):
    assert generate_ids(session, checkpoint, prompts, params, max_batch=3)[0] == alone


@pytest.mark.parametrize("budget", [5, 16, 30])
def test_prompts_in_chunks(session, generate_ids, checkpoint, prompts, params, alone, budget):
    tokens, stats = generate_ids(session, checkpoint, prompts, params, max_step_tokens=budget)
    assert tokens == alone
    assert stats.steps > TOKENS


@pytest.mark.parametrize("block_size", [1, 7, 64])
def test_any_block_size(session, generate_ids, checkpoint, prompts, params, alone, block_size):
    assert (
        generate_ids(session, checkpoint, prompts, params, block_size=block_size, num_blocks=1024 // block_size)[0]
        == alone
    )


def test_shared_prefixes(session, generate_ids, checkpoint, prompts, params, alone):
    tokens, stats = generate_ids(session, checkpoint, [*prompts, *prompts], params, max_batch=2)
    assert tokens == alone + alone
    assert stats.shared_tokens >= 32 + sum((length - 1) // 16 * 16 for length in LENGTHS)


def test_preempted(session, generate_ids, checkpoint, prompts, params, alone):
    tokens, stats = generate_ids(session, checkpoint, prompts, params, max_batch=8, num_blocks=8, max_step_tokens=48)
    assert tokens == alone
    assert stats.preemptions > 0
    assert stats.peak_blocks <= 8


def test_samples_of_one_prompt(session, generate_ids, checkpoint, prompts, params, alone):
    """Sample 0 is what one sample alone would be; the others differ if and only if there is chance in it."""
    several = replace(params, n=3)
    tokens, stats = generate_ids(session, checkpoint, prompts, several, max_batch=7, num_blocks=40)
    assert tokens[::3] == alone
    same = [a == b for a, b in zip(tokens[1::3], alone, strict=True)]
    assert all(same) if params.is_greedy else not any(same)
    assert stats.generated_tokens == 3 * TOKENS * len(prompts)
