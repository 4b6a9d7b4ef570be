"""Other libraries' kernels behind the interface: right where they serve, refused with a reason where not."""

from __future__ import annotations

import importlib.util

import numpy as np
import pytest

import opsocket
from opsocket.operators import MatmulSpec, Request, Session, Unsupported
from opsocket.quantization import get_format, quantize


@pytest.fixture(params=["onnxruntime", "openvino"])
def session(request: pytest.FixtureRequest) -> Session:
    if importlib.util.find_spec(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return opsocket.open("cpu", operators={"matmul": request.param}, threads=1)


@pytest.mark.parametrize(("fmt", "dtype"), [("q4_0", "f32"), ("i4_g64", "bf16"), ("q8_0", "f16")])
def test_its_product_is_that_of_the_dequantized_weight(session: Session, fmt: str, dtype: str) -> None:
    generator = np.random.default_rng(0)
    request = Request(MatmulSpec(fmt, 40, 128, x_dtype=dtype, bias=True))
    plan = session.plan(request)
    packed = session.prepare_weight(
        request, quantize(get_format(fmt), generator.standard_normal((40, 128)).astype(np.float32))
    )
    weight = session.download(type(plan).dequantize(session, packed))
    bias = generator.standard_normal(40).astype(np.float32)
    for rows in (0, 1, 5):
        x = session.upload(generator.standard_normal((rows, 128)).astype(np.float32), dtype)
        y = session.download(plan.run(x, packed, session.upload(bias)))
        np.testing.assert_allclose(y, session.download(x) @ weight.T + bias, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fmt", ["q4_1", "q4_0_a8", "i4_g32_z", "f32"])
def test_what_it_can_not_do_is_refused_with_a_reason(session: Session, fmt: str) -> None:
    with pytest.raises(Unsupported) as refused:
        session.plan(Request(MatmulSpec(fmt, 32, 64)))
    assert {reason.field for reason in refused.value.reasons} == {"weight_format"}
