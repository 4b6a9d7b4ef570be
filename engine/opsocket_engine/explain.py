"""What a model asks of a backend, before any of its weights are loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opsocket.operators import Request
from opsocket_engine.checkpoint import open_checkpoint
from opsocket_engine.locate import locate
from opsocket_engine.options import EngineOptions
from opsocket_engine.requests import decoder_requests

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig


def model_requests(model: str, config: RuntimeConfig) -> list[Request]:
    """Every distinct request of a model, in the order of first use. Reads the headers of its files only.

    Where `config` names no number of cache blocks, one sequence of the model's longest context stands for it.
    """
    checkpoint = open_checkpoint(locate(model))
    options = EngineOptions.of(config.engine)
    num_blocks = options.num_blocks or -(-checkpoint.config.max_position // options.block_size)
    return decoder_requests(
        checkpoint.config, lambda name: checkpoint.weight(name).format.id, options, num_blocks
    ).distinct()
