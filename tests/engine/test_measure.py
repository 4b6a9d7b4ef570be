"""What `opsocket bench` measures ends, and counts what was decoded."""

from __future__ import annotations

import pytest

from opsocket_engine.engine import Engine
from opsocket_engine.measure import Decode, measure
from opsocket_engine.options import EngineOptions

OPTIONS = EngineOptions(num_blocks=32, max_batch=3, max_step_tokens=4, block_size=4)


@pytest.mark.timeout(60)
def test_sequences_that_end_by_their_context_end_the_measurement(session, tiny) -> None:
    """Prompts take steps in which the first sequence decodes already; its context is full before the last one's is."""
    case = Decode(start=12, batch=3, steps=40)
    with Engine(session, tiny(), None, EngineOptions(**vars(OPTIONS) | {"max_context": 24})) as engine:
        (runs,) = measure(engine, [case], 1, None)
        assert runs.rates[0] > 0
        assert not engine.has_work


def test_as_many_tokens_are_decoded_as_were_asked_for(session, tiny) -> None:
    case = Decode(start=1, batch=2, steps=8)
    with Engine(session, tiny(), None, EngineOptions(**vars(OPTIONS) | {"replay_steps": 1})) as engine:
        measure(engine, [case], 1, None)
        assert engine.stats().decode_tokens >= 2 * case.batch * case.steps
