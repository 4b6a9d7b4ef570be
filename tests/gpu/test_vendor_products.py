"""Products by cuBLAS and hipBLASLt through torch: what is asked of them. On the host torch's own products stand in,
which shows that weights, biases and outputs meet as they should, and nothing of a chip's sums."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opsocket.operators import DeviceInfo, EmbeddingSpec, MatmulSpec, Numerics, Pick, Request, SessionOptions
from opsocket_conformance.case import Case
from opsocket_conformance.operators.matmul.matmul import Matmul
from opsocket_conformance.runner import run_case
from opsocket_conformance.verdicts import Verdict
from opsocket_cuda.backend import CudaBackend
from opsocket_rocm.backend import RocmBackend
from opsocket_torch_gpu import matmul
from opsocket_torch_gpu.provider import CublasProvider
from opsocket_triton import mode
from opsocket_triton.provider import TritonProvider

mode.interpret(DeviceInfo("cuda", 0, "sm_90", "sm_90", 2**30, numerics="interpreted"))

H100 = DeviceInfo("cuda", 0, "H100", "sm_90", 80 << 30)
MI300 = DeviceInfo("rocm", 0, "MI300X", "gfx942", 192 << 30)
FAST = Numerics("bf16", "approx", "approx", "f32_truncating", dequantized="bf16")


class _OnTheHost(CublasProvider):
    def pick(self, device, request):
        return super().pick(replace(device, numerics="device"), request)


class _Backend(CudaBackend):
    def providers(self):
        return [_OnTheHost(), TritonProvider()]


@pytest.fixture(scope="module")
def session():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(mode.MEMORY_VARIABLE, "host")
        device = DeviceInfo("cuda", 0, "sm_90", "sm_90", 8 << 30, numerics="interpreted")
        with _Backend().open(device, SessionOptions()) as opened:
            yield opened


@pytest.fixture
def mixed(monkeypatch):
    """torch's host products have no output wider than their factors."""
    product = torch.mm

    def mm(x, weight, dtype=None, *, out):
        return product(x, weight, out=out) if dtype is None else out.copy_(product(x.to(dtype), weight.to(dtype)))

    monkeypatch.setattr(torch, "mm", mm)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    "knobs",
    [
        {"w": "f32", "dtype": "f32"},
        {"w": "bf16", "dtype": "bf16", "acc": "f32_truncating"},
        {"w": "f16", "dtype": "f16", "acc": "f32_truncating", "out": "f32"},
    ],
)
def test_products(session, mixed, knobs, bias) -> None:
    for n, k, m in ((96, 64, 7), (33, 40, 1)):
        result = run_case(Case(Matmul(n=n, k=k, m=m, bias=bias, **knobs)), session, 0, 60.0)
        assert result.verdict is Verdict.PASS, (result.case, result.messages, result.reasons)
        assert result.provider == "cublas"


def test_a_weight_is_a_table_too(session) -> None:
    request = Request(MatmulSpec("bf16", 32, 64, "bf16", "bf16", numerics=FAST))
    rows = torch.randn(32, 64).bfloat16()
    packed = session.prepare_weight(request, {"weight": rows.view(torch.uint16).numpy()})
    assert session.supports(request).provider == "cublas"
    plan = session.plan(Request(EmbeddingSpec("bf16", 32, 64, "bf16")))
    found = plan.run(torch.tensor([31, 0, 7]), packed)
    assert torch.equal(found, rows[[31, 0, 7]])


@pytest.mark.parametrize("legacy", [True, False])
def test_sums_are_f32_whatever_the_process_allows(legacy) -> None:
    switches = torch.backends.cuda.matmul
    before = switches.fp32_precision
    if legacy:
        switches.allow_tf32 = True
    else:
        switches.fp32_precision = "tf32"
    switches.allow_bf16_reduced_precision_reduction = True
    try:
        with matmul.f32_sums():
            assert switches.fp32_precision == "ieee"
            assert not switches.allow_bf16_reduced_precision_reduction
        assert switches.fp32_precision == "tf32"
        assert switches.allow_bf16_reduced_precision_reduction
        if legacy:
            assert switches.allow_tf32
    finally:
        if legacy:
            switches.allow_tf32 = False
        switches.fp32_precision = before


def _fields(backend, device, spec: MatmulSpec) -> set[str]:
    provider = next(each for each in backend().providers() if each.name in ("cublas", "hipblas"))
    answer = provider.pick(device, Request(spec))
    return set() if isinstance(answer, Pick) else {reason.field for reason in answer}


def test_what_is_refused() -> None:
    dense = MatmulSpec("bf16", 64, 64, "bf16", "bf16", numerics=FAST)
    exact = MatmulSpec("f32", 64, 64)
    for backend, device in ((CudaBackend, H100), (RocmBackend, MI300)):
        assert not _fields(backend, device, dense)
        assert not _fields(backend, device, exact)
        assert _fields(backend, device, replace(dense, numerics=Numerics())) == {"numerics.accumulate"}
        assert _fields(backend, device, replace(dense, x_dtype="f32", out_dtype="f32")) == {"x_dtype"}
        assert _fields(backend, device, replace(exact, weight_format="q4_0")) == {"weight_format"}
        assert _fields(backend, device, replace(exact, numerics=Numerics(accumulate="f64"))) == {"numerics.accumulate"}
        interpreted = replace(device, numerics="interpreted")
        assert _fields(backend, interpreted, exact) == {"device.numerics"}
    assert not _fields(CudaBackend, H100, replace(dense, bias=True))
    assert _fields(RocmBackend, MI300, replace(dense, bias=True)) == {"bias"}
    assert _fields(RocmBackend, MI300, replace(dense, out_dtype="f32")) == {"out_dtype"}
