"""Decode steps by graphs give what the same steps give without. `test_equivalence` runs every kind of batch so."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

import opsocket
from opsocket.operators import BackendError, DeviceInfo, SessionOptions
from opsocket_cuda.backend import CudaBackend
from opsocket_engine import captured
from opsocket_engine import engine as engine_module
from opsocket_engine.checkpoint import open_checkpoint
from opsocket_engine.engine import Engine
from opsocket_engine.locate import locate
from opsocket_engine.options import EngineOptions
from opsocket_engine.sampling import SamplingParams

OPTIONS = EngineOptions(num_blocks=64, max_batch=6, max_step_tokens=64, block_size=4, replay_steps=1)
GREEDY = SamplingParams(max_tokens=12, ignore_eos=True)


def steps(session, checkpoint, options, requests):
    """What each step put out, with (prompt, params) of `requests` coming one in every other step; and the stats."""
    with Engine(session, checkpoint, None, options) as engine:
        outputs, coming = [], list(requests)
        while coming or engine.has_work:
            if coming and len(outputs) % 2 == 0:
                engine.add_request(*coming.pop(0))
            outputs.append([(o.request, o.sample, o.token_id) for o in engine.step()])
        engine.blocks.check()
        return outputs, engine.stats()


@pytest.mark.parametrize(
    "formats", [{}, {"layers.0.k_proj": "q8_0", "layers.1.up_proj": "f16"}], ids=["fused", "apart"]
)
def test_batches_that_grow_and_shrink_in_every_other_step(session, tiny, formats):
    rng = np.random.default_rng(0)
    sampled = replace(GREEDY, temperature=0.9, top_k=20, n=2, seed=3)
    requests = [
        (rng.integers(0, 128, length).tolist(), replace(sampled if i % 3 == 2 else GREEDY, max_tokens=5 + 4 * i))
        for i, length in enumerate((3, 1, 9, 2, 17, 1))
    ]
    checkpoint = tiny(formats, qkv_bias=True, qk_norm=True, tie_embeddings=True)
    eager, eager_stats = steps(session, checkpoint, replace(OPTIONS, capture=False), requests)
    outputs, stats = steps(session, checkpoint, OPTIONS, requests)
    assert outputs == eager
    assert eager_stats.captured_steps == 0
    assert 20 < stats.captured_steps < stats.steps == eager_stats.steps


def test_copied_blocks_are_copied_before_the_replay(session, tiny):
    """Two samples share the last block of a prompt that does not fill it: each writes into its own copy."""
    requests = [([1, 2, 3, 4, 5], replace(GREEDY, n=2, temperature=1.0, seed=1))] * 2
    eager, _ = steps(session, tiny(), replace(OPTIONS, capture=False), requests)
    outputs, stats = steps(session, tiny(), OPTIONS, requests)
    assert outputs == eager
    assert stats.captured_steps > 10


def test_graphs_are_dropped_when_they_are_too_many(session, tiny, monkeypatch):
    monkeypatch.setattr(captured, "MAX_GRAPHS", 2)
    with Engine(session, tiny(), None, OPTIONS) as engine:
        for n in (1, 2, 3, 2, 1):
            one = replace(GREEDY, n=n, temperature=1.0, max_tokens=3)
            assert [len(c.token_ids) for c in engine.generate([[5, 6]], one)] == [3] * n
        assert list(engine._captured._runs) == [("sampled", 2, 1), ("sampled", 1, 1)]


def test_a_capture_that_fails_is_made_again(session, tiny, monkeypatch):
    with Engine(session, tiny(), None, OPTIONS) as engine:
        plan = engine._decoder.plans[engine.requests.lm_head]
        engine.add_request([1, 2, 3], GREEDY)
        engine.step()
        with monkeypatch.context() as patch:
            patch.setattr(type(plan), "_run", lambda *_: 1 / 0)
            with pytest.raises(BackendError):
                engine.step()
        assert session.capturing is None
        rest = [output.token_id for _ in range(11) for output in engine.step()]
        assert engine.stats().captured_steps == 11
    whole, _ = steps(session, tiny(), replace(OPTIONS, capture=False), [([1, 2, 3], GREEDY)])
    assert [token for step in whole for *_, token in step][1:] == rest


def texts(session, checkpoint, options, requests):
    """Each sample's tokens and end, with all requests at once; how many steps put something out; and the stats."""
    with Engine(session, checkpoint, None, options) as engine:
        for request in requests:
            engine.add_request(*request)
        found, calls = {}, 0
        while engine.has_work:
            for output in engine.step():
                found.setdefault((output.request, output.sample), []).append((output.token_id, output.finish_reason))
            calls += 1
        engine.blocks.check()
        assert engine.blocks.num_used == 0
        return found, calls, engine.stats()


@pytest.fixture
def unhurried(monkeypatch):
    """However slow this machine is at the moment, steps are run together."""
    monkeypatch.setattr(engine_module, "FLOW_S", math.inf)


def test_full_steps_by_graphs_give_the_same(session, tiny, monkeypatch):
    """Prompts of several steps of 16 tokens each, alone and beside sequences that decode, greedy and in two samples."""
    rng = np.random.default_rng(2)
    two = replace(GREEDY, n=2, temperature=0.8, seed=5)
    requests = [(rng.integers(0, 128, n).tolist(), two if n == 31 else GREEDY) for n in (70, 64, 31, 3, 90, 55)]
    options = replace(OPTIONS, num_blocks=160, max_step_tokens=16)
    eager, _ = steps(session, tiny(num_layers=3), replace(options, capture=False), requests)
    outputs, stats = steps(session, tiny(num_layers=3), options, requests)
    monkeypatch.setattr(engine_module, "captures_mixed", lambda *_: False)
    others, decode_stats = steps(session, tiny(num_layers=3), options, requests)
    assert outputs == others == eager
    assert stats.captured_steps > decode_stats.captured_steps + 5


@pytest.mark.parametrize(("max_step_tokens", "max_batch"), [(16, 6), (64, 6), (9, 2)])
def test_all_steps_by_graphs_of_any_number_of_rows_give_the_same(session, tiny, max_step_tokens, max_batch):
    """Chunks of prompts of all lengths, alone and beside others that decode, of which some choose no token."""
    rng = np.random.default_rng(4)
    two = replace(GREEDY, n=2, temperature=0.8, seed=5)
    requests = [(rng.integers(0, 128, n).tolist(), two if n in (31, 2) else GREEDY) for n in (70, 5, 31, 3, 2, 55, 1)]
    options = replace(OPTIONS, block_size=16, max_step_tokens=max_step_tokens, max_batch=max_batch)
    model = tiny(num_layers=3, qkv_bias=True, qk_norm=True)
    eager, _ = steps(session, model, replace(options, capture=False), requests)
    outputs, stats = steps(session, model, options, requests)
    assert outputs == eager
    assert stats.captured_steps == stats.steps


def test_a_graph_of_any_number_of_rows_is_recorded_once(session, tiny):
    options = replace(OPTIONS, block_size=16, max_batch=3)
    with Engine(session, tiny(), None, options) as engine:
        for n in (40, 3, 64, 2, 90):
            engine.generate([list(range(n)), list(range(n // 2))], replace(GREEDY, max_tokens=2))
        assert [key for key in engine._captured._runs if key[0] == "mixed"] == [("mixed", 64, 3, 3)]
        engine.generate([list(range(64)) * 3], replace(GREEDY, max_tokens=2))
        assert sorted(key[2:] for key in engine._captured._runs if key[0] == "mixed") == [(3, 0), (3, 3)]


def test_where_steps_are_no_longer_than_batches_full_ones_are_recorded(session, tiny):
    options = replace(OPTIONS, block_size=16, max_step_tokens=6)
    requests = [(list(range(n)), GREEDY) for n in (40, 5, 31, 3)]
    eager, _ = steps(session, tiny(), replace(options, capture=False), requests)
    outputs, stats = steps(session, tiny(), options, requests)
    assert outputs == eager
    assert 10 < stats.captured_steps < stats.steps


def test_full_steps_are_recorded_from_the_second_of_a_size_on(session, tiny):
    """Blocks of 4 tokens go by kernels that are replayed as they were recorded."""
    options = replace(OPTIONS, max_step_tokens=8, max_batch=2)
    with Engine(session, tiny(), None, options) as engine:
        engine.add_request(list(range(39)), replace(GREEDY, max_tokens=1))
        replayed = []
        while engine.has_work:
            engine.step()
            replayed.append(engine.stats().captured_steps)
    assert replayed == [0, 1, 2, 3, 3], "the last step has 7 tokens"


@pytest.mark.usefixtures("unhurried")
@pytest.mark.parametrize("steps_together", [2, 5, 8])
def test_steps_that_run_together_choose_the_same_tokens_and_end_alike(session, tiny, steps_together):
    """Samples end in the middle of a replay, by a token that stops them or by their length; others go on."""
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 128, length).tolist() for length in (3, 1, 9, 2, 17)]
    apart, _, stats = texts(session, tiny(), OPTIONS, [(prompt, replace(GREEDY, max_tokens=40)) for prompt in prompts])
    stops = [apart[i, 0][7 + 2 * i][0] for i in range(len(prompts))]
    requests = [
        (prompt, replace(GREEDY, max_tokens=40 - i, stop_token_ids=(stop,) if i % 2 else ()))
        for i, (prompt, stop) in enumerate(zip(prompts, stops, strict=True))
    ]
    apart, calls_apart, stats = texts(session, tiny(), OPTIONS, requests)
    together = replace(OPTIONS, replay_steps=steps_together)
    found, calls, together_stats = texts(session, tiny(), together, requests)
    assert found == apart
    assert {ends[-1][1] for ends in found.values()} == {"stop", "length"}
    assert calls < calls_apart * (0.5 + 0.5 / steps_together)
    for name in ("generated_tokens", "decode_tokens", "prompt_tokens"):
        assert getattr(together_stats, name) == getattr(stats, name)


@pytest.mark.usefixtures("unhurried")
def test_sampled_steps_that_run_together_choose_the_same_tokens(session, tiny):
    """The number that decides a token depends on nothing but its place: all are known before the first step runs."""
    rng = np.random.default_rng(3)
    sampled = [replace(GREEDY, temperature=0.9, top_k=20, n=2, seed=3), replace(GREEDY, temperature=1.3, top_p=0.9)]
    requests = [
        (rng.integers(0, 128, length).tolist(), replace(params, max_tokens=30 + length))
        for length, params in zip((3, 1, 9), [*sampled, GREEDY], strict=True)
    ]
    eager, _, _ = texts(session, tiny(), replace(OPTIONS, capture=False), requests)
    apart, calls_apart, _ = texts(session, tiny(), OPTIONS, requests)
    together, calls, _ = texts(session, tiny(), replace(OPTIONS, replay_steps=6), requests)
    assert together == apart == eager
    assert calls < calls_apart * 0.6


@pytest.mark.usefixtures("unhurried")
def test_steps_with_penalties_run_one_by_one(session, tiny):
    """What a penalty is taken from is known once the token before is."""
    requests = [([1, 2, 3], replace(GREEDY, repetition_penalty=1.3, max_tokens=30)), ([5, 6], GREEDY)]
    eager, _, _ = texts(session, tiny(), replace(OPTIONS, capture=False), requests)
    together, calls, _ = texts(session, tiny(), replace(OPTIONS, replay_steps=6), requests)
    assert together == eager
    assert calls >= 30


def test_where_sampling_can_not_be_captured_its_steps_still_are(session, tiny, monkeypatch):
    requests = [([1, 2, 3], replace(GREEDY, temperature=0.9, seed=2)), ([5, 6], GREEDY)]
    eager, _ = steps(session, tiny(), replace(OPTIONS, capture=False), requests)
    monkeypatch.setattr(engine_module, "captures_sampled", lambda *_: False)
    outputs, stats = steps(session, tiny(), replace(OPTIONS, replay_steps=6), requests)
    assert outputs == eager
    assert stats.captured_steps > 8


@pytest.mark.usefixtures("unhurried")
def test_steps_run_one_by_one_where_blocks_are_too_few_for_more(session, tiny):
    """Two sequences of 6 and 7 blocks in the end, of 4 tokens each, in 13 blocks, and in fewer."""
    requests = [([1, 2, 3, 4, 5], replace(GREEDY, max_tokens=18)), ([6, 7, 8], replace(GREEDY, max_tokens=22))]
    for num_blocks in (7, 9, 13):
        options = replace(OPTIONS, num_blocks=num_blocks, max_batch=2, replay_steps=8)
        eager, _, _ = texts(session, tiny(), replace(options, capture=False), requests)
        found, _, stats = texts(session, tiny(), options, requests)
        assert found == eager
        assert stats.captured_steps > 0


def test_slow_steps_run_one_by_one(session, tiny, monkeypatch):
    monkeypatch.setattr(engine_module, "FLOW_S", 0.0)
    _, calls, _ = texts(session, tiny(), replace(OPTIONS, replay_steps=8), [([1, 2], GREEDY)])
    assert calls == GREEDY.max_tokens


@pytest.mark.usefixtures("unhurried")
def test_a_first_token_does_not_wait_for_others(session, tiny):
    """A prompt of one token is a step like those of decoding, which a replay of eight could begin with."""
    with Engine(session, tiny(), None, replace(OPTIONS, replay_steps=8)) as engine:
        for _ in range(2):
            engine.add_request([3], GREEDY)
            outputs = [engine.step()]
            while engine.has_work:
                outputs.append(engine.step())
    assert len(outputs[0]) == 1
    assert len(outputs) < GREEDY.max_tokens


@pytest.mark.usefixtures("unhurried")
def test_a_request_that_comes_between_two_replays_is_taken_up(session, tiny):
    long = replace(GREEDY, max_tokens=40)
    with Engine(session, tiny(), None, replace(OPTIONS, replay_steps=8)) as engine:
        engine.add_request([1, 2, 3], long)
        tokens = [output.token_id for _ in range(4) for output in engine.step()]
        assert len(tokens) > 4
        engine.add_request([5, 6], GREEDY)
        outputs = []
        while engine.has_work:
            outputs += engine.step()
    tokens += [output.token_id for output in outputs if output.request == 0]
    apart, _, _ = texts(session, tiny(), OPTIONS, [([1, 2, 3], long), ([5, 6], GREEDY)])
    assert tokens == [token for token, _ in apart[0, 0]]
    assert [o.token_id for o in outputs if o.request == 1] == [token for token, _ in apart[1, 0]]


@pytest.mark.usefixtures("unhurried")
def test_a_graph_of_a_gpu_feeds_what_one_step_chose_to_the_next(session, tiny):
    """On an interpreted one, whose graphs are recorded and replayed as a chip's are."""
    requests, together = [([1, 2, 3], GREEDY), ([4, 5], GREEDY)], replace(OPTIONS, replay_steps=5)
    device = DeviceInfo("cuda", 0, "sm_90", "sm_90", 1 << 32, numerics="interpreted")
    with CudaBackend().open(device, SessionOptions()) as interpreted:
        found, calls, _ = texts(interpreted, tiny(), together, requests)
    assert calls < GREEDY.max_tokens
    assert found == texts(session, tiny(), OPTIONS, requests)[0]


def test_full_steps_by_graphs_of_a_gpu(session, tiny):
    requests = [(list(range(60)), replace(GREEDY, max_tokens=3)), (list(range(30, 64)), replace(GREEDY, max_tokens=4))]
    options = replace(OPTIONS, max_step_tokens=16, max_batch=2)
    device = DeviceInfo("cuda", 0, "sm_90", "sm_90", 1 << 32, numerics="interpreted")
    with CudaBackend().open(device, SessionOptions()) as interpreted:
        outputs, stats = steps(interpreted, tiny(), options, requests)
    assert outputs == steps(session, tiny(), options, requests)[0]
    assert stats.captured_steps > 4


def test_nothing_is_captured_where_contents_are_checked(tiny):
    with opsocket.open("cpu", threads=1, checked="deep") as session:
        _, stats = steps(session, tiny(), OPTIONS, [([1, 2], GREEDY)])
    assert stats.captured_steps == 0


def test_nothing_is_captured_where_a_kernel_can_not_be(session, tiny, monkeypatch):
    monkeypatch.setattr(session.backend.graph_type, "level", classmethod(lambda cls, kernel: "never"))
    _, stats = steps(session, tiny(), OPTIONS, [([1, 2], GREEDY)])
    assert stats.captured_steps == 0


@pytest.mark.model
def test_smollm2(session):
    checkpoint = open_checkpoint(locate("smollm2"))
    prompts = [[19556, 28], list(range(300, 330)), [504]]
    texts = []
    for capture in (False, True):
        options = EngineOptions(num_blocks=40, max_batch=3, capture=capture)
        with Engine(session, checkpoint, None, options) as engine:
            texts.append([c.token_ids for c in engine.generate(prompts, replace(GREEDY, max_tokens=10))])
            assert engine.stats().captured_steps == (10 if capture else 0)
    assert texts[0] == texts[1]
