"""What kernels may do inside is one option, stated in every request that it concerns."""

import numpy as np
import pytest

from opsocket.operators import AttentionSpec, ContractError, MatmulSpec, Numerics
from opsocket_engine.options import EngineOptions
from opsocket_engine.requests import decoder_requests


def _stated(tiny, **settings):
    checkpoint = tiny({}, num_layers=1)
    options = EngineOptions(**settings)
    requests = decoder_requests(checkpoint.config, lambda name: checkpoint.weight(name).format.id, options, 8)
    return {r.spec.numerics for r in requests.distinct() if isinstance(r.spec, AttentionSpec | MatmulSpec)}


def test_exact_permits_nothing(tiny):
    assert _stated(tiny) == _stated(tiny, numerics="exact", dtype="bf16") == {Numerics()}


def test_fast_permits_what_matrix_units_do_in_the_type_of_the_activations(tiny):
    assert _stated(tiny, numerics="fast", dtype="bf16") == {
        Numerics("bf16", "approx", "approx", "f32_truncating", dequantized="bf16", sinks="bf16", scales="bf16")
    }


def test_an_unknown_word_is_told():
    with pytest.raises(ContractError, match=r"numerics: wanted one of \['exact', 'fast'\], got 'quick'"):
        EngineOptions(numerics="quick")


def test_fast_is_close(session, tiny, engine_logits):
    prompts = [[1, 2, 3], list(range(20))]
    exact, fast = (
        engine_logits(session, tiny({}), prompts, dtype="bf16", kv_format="bf16", numerics=n) for n in ("exact", "fast")
    )
    for a, b in zip(exact, fast, strict=True):
        assert np.abs(a - b).max() < 0.05 * np.abs(a).max()
