"""A simulated device, compiled on first use."""

from __future__ import annotations

import pytest
import torch

from opsocket_simulated import memory


@pytest.fixture(scope="session")
def device() -> torch.device:
    if why := memory.absence():
        pytest.skip(why)
    return memory.device("tests", 1 << 30)
