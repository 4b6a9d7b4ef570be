"""SmolLM2's greedy tokens through the emulated NPU, beside those of the CPU backend with the same options.

Both round activations to 16 bits, each in an order of its own, so that logits differ a little and near ties may fall
either way. The prompt is one whose choices are far from that: by how much is part of the test.
"""

import os
import subprocess
import sys

import numpy as np
import pytest

import opsocket
from opsocket_engine.captured import CapturedDecoder
from opsocket_engine.engine import Engine
from opsocket_engine.options import EngineOptions
from opsocket_engine.sampling import Sampler, SamplingParams

PROMPT, TOKENS = "a b c d e f g", 4


def generated(session, dtype, monkeypatch):
    """Token ids, f32 [TOKENS, V] of the logits that they were chosen from, who serves attention, and of every replayed
    decode step why runs were made again."""
    from opsocket_ascend.graph import NpuGraph

    seen, choose, decode = [], Sampler.__call__, CapturedDecoder.decode
    made_again, replay = [], NpuGraph.replay

    def replayed(graph, rows):
        replay(graph, rows)
        made_again.append(graph.made_again)

    def watch(sampler, logits, *args, **kwargs):
        seen.append(session.download(logits))
        return choose(sampler, logits, *args, **kwargs)

    def decoded(captured, *args):
        logits, chosen = decode(captured, *args)
        seen.append(session.download(logits))
        return logits, chosen

    options = EngineOptions(
        dtype=dtype, kv_format=dtype, numerics="fast", block_size=128, num_blocks=4, max_batch=1, max_step_tokens=32
    )
    with monkeypatch.context() as patch, Engine.load(session, "smollm2", options) as engine:
        patch.setattr(Sampler, "__call__", watch)
        patch.setattr(CapturedDecoder, "decode", decoded)
        patch.setattr(NpuGraph, "replay", replayed)
        served = {session.supports(r).provider for r in engine.requests.distinct() if r.op == "attention"}
        (completion,) = engine.generate([PROMPT], SamplingParams(max_tokens=TOKENS, ignore_eos=True))
    return list(completion.token_ids), np.concatenate(seen), served, made_again


@pytest.mark.timeout(600)
@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_greedy_tokens_equal_those_of_the_cpu(session, monkeypatch, dtype):
    with opsocket.open("cpu") as cpu:
        wanted, logits, *_ = generated(cpu, dtype, monkeypatch)
    tokens, ours, served, made_again = generated(session, dtype, monkeypatch)
    assert served == {"torch_npu"}
    assert made_again == [()] * (TOKENS - 2), "the first step is no decode step, the second is recorded"
    assert tokens == wanted
    apart = np.abs(ours - logits).max()
    top = np.sort(logits, axis=1)
    assert (top[:, -1] - top[:, -2]).min() > 4 * apart, apart


@pytest.mark.timeout(600)
def test_greedy_tokens_equal_those_of_the_cpu_on_a_chip_whose_products_are_in_f16():
    program = f"""
import sys
import opsocket
from opsocket_engine.engine import Engine
from opsocket_engine.options import EngineOptions
from opsocket_engine.sampling import SamplingParams

options = EngineOptions(
    dtype="f16", kv_format="f16", numerics="fast", block_size=128, num_blocks=4, max_batch=1, max_step_tokens=32
)
for device in ("ascend:0", "cpu"):
    with opsocket.open(device) as session, Engine.load(session, "smollm2", options) as engine:
        (completion,) = engine.generate([{PROMPT!r}], SamplingParams(max_tokens={TOKENS}, ignore_eos=True))
        print(session.device.arch, *completion.token_ids, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        env=os.environ | {"OPSOCKET_EMULATE": "Ascend310P3"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    npu, cpu = (line.split() for line in done.stderr.splitlines()[-2:])
    assert npu[0] == "Ascend310P3"
    assert npu[-TOKENS:] == cpu[-TOKENS:]
