"""int8 activations, where the caller asks for them: in products with coded weights, and nowhere else."""

from __future__ import annotations

import numpy as np
import pytest

import opsocket
from opsocket.operators import ContractError, MatmulSpec
from opsocket_engine.engine import Engine
from opsocket_engine.options import EngineOptions
from opsocket_engine.requests import decoder_requests
from opsocket_engine.sampling import SamplingParams

FORMATS = {
    "embed_tokens": "q8_0",
    "layers.0.q_proj": "q4_1",
    "layers.0.k_proj": "q4_1",
    "layers.0.v_proj": "q8_0",
    "layers.0.o_proj": "f16",
    "layers.0.down_proj": "i8_channel_a8",
}


@pytest.mark.parametrize(("activations", "suffix"), [("none", ""), ("i8_token", "_a8"), ("i8_g32", "_a8g32")])
def test_what_is_asked_for(tiny, activations, suffix):
    checkpoint = tiny(FORMATS, num_layers=1, tie_embeddings=True)
    options = EngineOptions(activations=activations)
    requests = decoder_requests(checkpoint.config, lambda name: checkpoint.weight(name).format.id, options, 8)
    asked = [request.spec.weight_format for request in requests.distinct() if isinstance(request.spec, MatmulSpec)]
    assert asked == [f"q4_1{suffix}", f"q8_0{suffix}", "f16", "f32", "i8_channel_a8", f"q8_0{suffix}"]
    assert requests.embedding.spec.weight_format == "q8_0"


@pytest.mark.parametrize("activations", ["i8_token", "i8_g32"])
def test_it_is_what_a_file_of_that_format_gives(session, tiny, engine_logits, activations):
    suffix = {"i8_token": "_a8", "i8_g32": "_a8g32"}[activations]
    names = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    stored = {f"layers.{i}.{name}": "q4_1" for i in range(2) for name in names}
    stated = dict.fromkeys(stored, f"q4_1{suffix}")
    prompts = [[1, 2, 3], list(range(20))]
    plain = engine_logits(session, tiny(stored), prompts)
    asked = engine_logits(session, tiny(stored), prompts, activations=activations)
    want = engine_logits(session, tiny(stated), prompts)
    for a, b, p in zip(asked, want, plain, strict=True):
        np.testing.assert_array_equal(a, b)
        assert 1e-4 < np.abs(a - p).max() < 0.3


def test_a_tied_head_with_int8_activations_is_still_the_table(tiny):
    """Where one provider serves both, in one layout."""
    pins = {"matmul": "torch", "embedding": "torch"}
    options = EngineOptions(num_blocks=8, max_batch=2, max_step_tokens=16, activations="i8_token")
    checkpoint = tiny({"embed_tokens": "q8_0"}, tie_embeddings=True)
    with (
        opsocket.open("cpu", threads=1, operators=pins) as session,
        Engine(session, checkpoint, None, options) as engine,
    ):
        assert engine.stats().weight_bytes == engine.stats().step_bytes
        assert len(engine.generate([[1, 2]], SamplingParams(max_tokens=4, ignore_eos=True))[0].token_ids) == 4


def test_another_name_is_refused():
    with pytest.raises(ContractError) as caught:
        EngineOptions(activations="i4")
    assert caught.value.argument == "activations"
