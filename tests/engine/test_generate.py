"""The engine as a caller sees it: requests, outputs, ends, numbers, and nothing left behind."""

from __future__ import annotations

import gc
import weakref
from dataclasses import replace

import numpy as np
import pytest

from opsocket.operators import BackendError, ContractError
from opsocket_engine.canonical import matrix_shapes
from opsocket_engine.config import ExpertsConfig
from opsocket_engine.engine import Engine
from opsocket_engine.locate import locate
from opsocket_engine.options import EngineOptions, kv_format_name
from opsocket_engine.sampling import SamplingParams
from opsocket_engine.tokenizer import load_tokenizer

OPTIONS = EngineOptions(num_blocks=32, max_batch=4, max_step_tokens=64)


@pytest.fixture
def engine(session, tiny):
    with Engine(session, tiny(), None, OPTIONS) as engine:
        yield engine


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer(locate("smollm2"))


@pytest.fixture
def text_engine(session, tiny, tokenizer):
    """A model of random weights, but with real text."""
    with Engine(session, tiny(vocab_size=49152, eos_ids=(2,)), tokenizer, OPTIONS) as engine:
        yield engine


@pytest.mark.parametrize("changes", [{}, {"tie_embeddings": True}, {"experts": ExpertsConfig(4, 2, True)}])
def test_loading_is_told_byte_by_byte(session, tiny, changes):
    checkpoint, told = tiny({"lm_head": "q8_0"} if not changes else {}, **changes), []
    Engine(session, checkpoint, None, OPTIONS, lambda done, total: told.append((done, total))).close()
    total = sum(checkpoint.weight(name).nbytes for name in matrix_shapes(checkpoint.config))
    assert {of for _, of in told} == {total}
    done = [done for done, _ in told]
    assert done == sorted(done)
    assert 0 < done[0] < done[-1] == total
    assert len(done) > 8


@pytest.mark.parametrize(
    ("prompt", "params", "argument"),
    [
        ([], SamplingParams(), "prompt"),
        (list(range(128)) * 2, SamplingParams(), "prompt"),  # no room for a token
        ([0, 128], SamplingParams(), "prompt"),
        ([-1], SamplingParams(), "prompt"),
        ("text", SamplingParams(), "prompt"),
        ([1], SamplingParams(n=5), "n"),
        ([1], SamplingParams(stop=("x",)), "stop"),
    ],
)
def test_requests_that_cannot_be_served_are_refused(engine, prompt, params, argument):
    with pytest.raises(ContractError) as caught:
        engine.add_request(prompt, params)
    assert caught.value.argument == argument
    assert not engine.has_work


def test_outputs_add_up_to_completions(engine):
    params = SamplingParams(max_tokens=5, ignore_eos=True, n=2, temperature=1.0, seed=1)
    streamed: dict[tuple[int, int], list[int]] = {}
    reasons = {}
    for output in engine.stream([[1, 2], [3]], params):
        key = output.request, output.sample
        assert key not in reasons, "nothing comes after the end"
        streamed.setdefault(key, []).append(output.token_id)
        if output.finish_reason:
            reasons[key] = output.finish_reason
    completions = engine.generate([[1, 2], [3]], params)
    assert [list(c.token_ids) for c in completions] == [streamed[key] for key in sorted(streamed)]
    assert [(c.request, c.sample) for c in completions] == [(2, 0), (2, 1), (3, 0), (3, 1)]
    assert set(reasons.values()) == {"length"}


def test_max_tokens_and_context_end_a_sample(engine):
    one, all_ = engine.generate([[1, 2, 3]], SamplingParams(max_tokens=1)), SamplingParams(ignore_eos=True)
    assert [len(c.token_ids) for c in one] == [1]
    (completion,) = engine.generate([list(range(100))], all_)
    assert engine.max_context == 256
    assert len(completion.token_ids) == 156
    assert completion.finish_reason == "length"


def test_end_tokens_end_a_sample(session, tiny):
    checkpoint = tiny()
    with Engine(session, checkpoint, None, OPTIONS) as engine:
        (free,) = engine.generate([[5, 9, 3]], SamplingParams(max_tokens=30, ignore_eos=True))
        third = free.token_ids[2]
        first = free.token_ids.index(third)
        stopped = engine.generate([[5, 9, 3]], SamplingParams(max_tokens=30, ignore_eos=True, stop_token_ids=(third,)))
    assert stopped[0].token_ids == free.token_ids[: first + 1]
    assert stopped[0].finish_reason == "stop"
    checkpoint.config = replace(checkpoint.config, eos_ids=(third,))
    with Engine(session, checkpoint, None, OPTIONS) as engine:
        ended, ignored = (
            engine.generate([[5, 9, 3]], SamplingParams(max_tokens=30, ignore_eos=ignore))[0]
            for ignore in (False, True)
        )
    assert ended.token_ids == stopped[0].token_ids
    assert ignored.token_ids == free.token_ids


def test_text_is_that_of_the_tokens(text_engine, tokenizer):
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=1.0, seed=3)
    (completion,) = text_engine.generate(["Hello"], params)
    assert completion.text == tokenizer.decode(completion.token_ids)
    assert len(completion.text) > 40


def test_stop_strings_end_the_text_before_them(text_engine):
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=1.0, seed=3)
    (free,) = text_engine.generate(["Hello"], params)
    stop = free.text[20:26]
    (stopped,) = text_engine.generate(["Hello"], replace(params, stop=(stop, "never to be seen")))
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]
    assert len(stopped.token_ids) < 40
    assert free.token_ids[: len(stopped.token_ids)] == stopped.token_ids


def test_an_end_token_is_no_text(text_engine, tokenizer):
    params = SamplingParams(max_tokens=40, ignore_eos=True, temperature=1.0, seed=3)
    (free,) = text_engine.generate(["Hello"], params)
    (ended,) = text_engine.generate(["Hello"], replace(params, stop_token_ids=(free.token_ids[9],)))
    end = free.token_ids.index(free.token_ids[9])
    assert ended.text == tokenizer.decode(free.token_ids[:end])


def test_seeds_repeat_and_requests_without_one_differ(engine):
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    a, b = engine.generate([[7, 8], [7, 8]], params)
    assert a.token_ids != b.token_ids
    seeded = engine.generate([[7, 8], [7, 8]], replace(params, seed=4))
    assert seeded[0].token_ids == seeded[1].token_ids


def test_an_engine_of_the_same_seed_repeats_itself(session, tiny):
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True)
    runs = []
    for seed in (1, 1, 2):
        with Engine(session, tiny(), None, replace(OPTIONS, seed=seed)) as engine:
            runs.append(engine.generate([[7, 8]], params)[0].token_ids)
    assert runs[0] == runs[1] != runs[2]


def test_leaving_a_stream_drops_the_rest(engine):
    stream = engine.stream([[1, 2, 3], [4] * 30], SamplingParams(ignore_eos=True))
    for _ in range(5):
        next(stream)
    stream.close()
    assert not engine.has_work
    assert engine.blocks.num_used == 0
    engine.blocks.check()


def test_a_refused_prompt_drops_those_before_it(engine):
    with pytest.raises(ContractError):
        engine.generate([[1], [999]], SamplingParams())
    assert not engine.has_work


def test_abort_takes_one_request_with_all_its_samples(engine):
    params = SamplingParams(ignore_eos=True, max_tokens=6, n=2)
    first, second = engine.add_request([1, 2], params), engine.add_request([3], params)
    engine.step()
    engine.abort(first)
    outputs = []
    while engine.has_work:
        outputs += engine.step()
    assert {output.request for output in outputs} == {second}
    engine.abort(second)
    assert engine.step() == []


def test_an_engine_survives_a_kernel_that_fails(engine, monkeypatch):
    plan = engine._decoder.plans[engine.requests.norm]
    with monkeypatch.context() as patch:
        patch.setattr(type(plan), "_run", lambda *_: 1 / 0)
        with pytest.raises(BackendError):
            engine.generate([[1, 2, 3]], SamplingParams(max_tokens=2))
    assert not engine.has_work
    engine.blocks.check()
    assert len(engine.generate([[1, 2, 3]], SamplingParams(max_tokens=2, ignore_eos=True))[0].token_ids) == 2


def test_stats_count_tokens_time_and_cache(session, tiny):
    with Engine(session, tiny(), None, OPTIONS) as engine:
        prompt = list(range(40))
        params = SamplingParams(max_tokens=9, ignore_eos=True)
        engine.add_request(prompt, params)
        engine.step()
        assert engine.stats().used_blocks == 3
        while engine.has_work:
            engine.step()
        engine.generate([prompt], params)
        stats = engine.stats()
    assert stats.prompt_tokens == 80 - 32
    assert stats.shared_tokens == 32
    assert stats.decode_tokens == 16
    assert stats.generated_tokens == 18
    assert stats.steps == 18
    assert stats.peak_blocks == 3
    assert stats.token_bytes == 2 * 2 * 2 * 16 * 4, "layers, K and V, heads, channels, f32"
    assert stats.cache_bytes == stats.token_bytes * 32 * 16
    assert stats.prompt_rate > 0
    assert stats.decode_rate == pytest.approx(16 / stats.decode_seconds)
    assert stats.to_json()["decode_tokens_per_second"] == stats.decode_rate


def test_weight_bytes_leave_out_rows_that_are_looked_up(session, tiny):
    with (
        Engine(session, tiny(), None, OPTIONS) as own,
        Engine(session, tiny(tie_embeddings=True), None, OPTIONS) as tied,
    ):
        table = 128 * 96 * 4
        assert own.stats().weight_bytes - own.stats().step_bytes == table
        assert tied.stats().weight_bytes == tied.stats().step_bytes == own.stats().step_bytes


def test_close_gives_everything_back(session, tiny):
    engine = Engine(session, tiny(), None, OPTIONS)
    engine.add_request([1, 2, 3])
    engine.step()
    decoder = weakref.ref(engine._decoder)
    cache = weakref.ref(next(iter(engine._decoder._layers)).cache)
    engine.close()
    gc.collect()
    assert decoder() is None
    assert cache() is None
    assert engine.blocks.num_used == 0


def test_the_cache_takes_its_share_of_memory_and_no_more_than_it_can_use(session, tiny, monkeypatch):
    token = 2 * 2 * 2 * 16 * 4
    memory = replace(session.memory(), total=1000 * token, used=200 * token)
    monkeypatch.setattr(session, "memory", lambda: memory)
    with Engine(session, tiny(), None, EngineOptions(memory_fraction=0.5)) as engine:
        assert engine.stats().num_blocks == 400 // 16
    with Engine(session, tiny(), None, EngineOptions(max_batch=2, max_context=60)) as engine:
        assert engine.stats().num_blocks == 8
        assert engine.max_context == 60


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "f64"),
        ("kv_format", "i8/tensor"),
        ("kv_format", "i8/none"),
        ("kv_format", "f32/token_head"),
        ("kv_format", "f7"),
        ("kv_format", "i4/nonsense"),
        ("block_size", 0),
        ("num_blocks", 0),
        ("max_batch", 0),
        ("max_step_tokens", 3),
        ("max_context", 0),
        ("memory_fraction", 0.0),
    ],
)
def test_options_out_of_range_are_refused(field, value):
    with pytest.raises(ContractError):
        EngineOptions(**{"max_batch": 4, field: value})


def test_kv_formats_have_one_name():
    assert kv_format_name("i8") == kv_format_name("i8/token_head") == "i8/token_head"
    assert kv_format_name("f16") == "f16"


def test_prompts_may_be_arrays(engine):
    params = SamplingParams(max_tokens=3, ignore_eos=True)
    (from_list,), (from_array,) = engine.generate([[4, 5]], params), engine.generate([np.array([4, 5])], params)
    assert from_list.token_ids == from_array.token_ids
