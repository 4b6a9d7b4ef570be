"""SmolLM2 through the Triton kernels, as Triton's interpreter carries them out: the tokens of the CPU backend."""

from __future__ import annotations

import numpy as np
import pytest

from opsocket.operators import Backend, DeviceInfo, SessionOptions
from opsocket_cuda.backend import CudaBackend
from opsocket_engine.checkpoint import open_checkpoint
from opsocket_engine.locate import locate
from opsocket_engine.sampling import SamplingParams
from opsocket_engine.tokenizer import load_tokenizer
from opsocket_rocm.backend import RocmBackend

PROMPT, TEXT = "A B C D", " E F G"
OPTIONS = {"max_batch": 1, "max_step_tokens": 16, "num_blocks": 8, "dtype": "f32", "kv_format": "f32"}
MARGIN = 0.5
"""By how much the logit of each token has to lie above the next: where it is close, either choice is right. In f32 both
backends err by a thousandth or so."""


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("backend", "arch"), [(CudaBackend(), "sm_90"), (RocmBackend(), "gfx942")], ids=["cuda", "rocm"]
)
def test_the_same_tokens(backend: Backend, arch, session, generate_ids, engine_logits, record_property):
    files = locate("smollm2")
    checkpoint, tokenizer = open_checkpoint(files), load_tokenizer(files)
    prompt, params = tokenizer.encode(PROMPT), SamplingParams(max_tokens=3, ignore_eos=True)
    (want,), _ = generate_ids(session, checkpoint, [prompt], params, **OPTIONS)
    logits = engine_logits(session, checkpoint, [[*prompt, *want]])[0][len(prompt) - 1 : -1]
    second, first = np.partition(logits, -2)[:, -2:].T
    record_property("smallest_margin", float((first - second).min()))
    assert (first - second).min() > MARGIN

    device = DeviceInfo(backend.info.name, 0, arch, arch, 1 << 32, numerics="interpreted")
    with backend.open(device, SessionOptions()) as interpreted:
        (got,), _ = generate_ids(interpreted, checkpoint, [prompt], params, **OPTIONS)
    assert got == want
    assert tokenizer.decode(list(got)) == TEXT
