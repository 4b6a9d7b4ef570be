"""Tests that need torch_npu and the emulator's libraries: `make ascend-test`, in an environment of their own."""

import importlib.util
import os

import pytest

IS_HERE = importlib.util.find_spec("torch_npu") is not None and os.environ.get("OPSOCKET_EMULATE")
if IS_HERE:
    # `import torch` alone would import torch_npu, over the CANN that is not there.
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"
collect_ignore_glob = [] if IS_HERE else ["test_*.py"]


@pytest.fixture(scope="session")
def session():
    import opsocket

    with opsocket.open("ascend:0") as opened:
        yield opened
