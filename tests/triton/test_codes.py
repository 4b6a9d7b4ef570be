"""Every code of every format, and numbers at and beside every tie, against torch's own conversions."""

from __future__ import annotations

import pytest
import torch

from opsocket.operators import DeviceInfo, KVFormat
from opsocket_triton import mode

mode.interpret(DeviceInfo("cuda", 0, "sm_90", "sm_90", 2**30, numerics="interpreted"))

import triton  # noqa: E402
import triton.language as tl  # noqa: E402

from opsocket_triton.cache import codes  # noqa: E402
from opsocket_triton.launch import launch  # noqa: E402

F8 = {"f8e4m3fn": torch.float8_e4m3fn, "f8e4m3fnuz": torch.float8_e4m3fnuz, "f8e5m2": torch.float8_e5m2}
OUT = (torch.float32, torch.float16, torch.bfloat16)


@triton.jit
def decode_all(raw, out, CODE: tl.constexpr, PER_BYTE: tl.constexpr):
    """out[0]: each byte unpacked in place. out[1]: each byte loaded once for every field of it."""
    count: tl.constexpr = 256 * PER_BYTE
    column = tl.arange(0, count)
    whole = codes.unpack(tl.load(raw + tl.arange(0, 256)), CODE)
    single = codes.unpack_at(tl.load(raw + column // PER_BYTE), column, CODE)
    tl.store(out + column, codes.decode(whole, CODE, out.dtype.element_ty))
    tl.store(out + count + column, codes.decode(single, CODE, out.dtype.element_ty))


@triton.jit
def encode_all(x, out, count, CODE: tl.constexpr, MAX: tl.constexpr):
    at = tl.program_id(0) * 4096 + tl.arange(0, 4096)
    values = tl.load(x + at, mask=at < count, other=0.0)
    if MAX:
        code = codes.encode_integer(values, MAX).to(tl.int8)
    else:
        code = codes.encode_f8(values, CODE)
    tl.store(out + at, code, mask=at < count)


@pytest.mark.parametrize("dtype", OUT, ids=str)
@pytest.mark.parametrize("code", [*F8, "i8", "i4", "i2"])
def test_every_code_decodes_exactly(code: str, dtype: torch.dtype) -> None:
    raw = torch.arange(256, dtype=torch.uint8)
    per_byte = codes.FIELDS_PER_BYTE.get(code, 1)
    bits = 8 // per_byte
    if code in F8:
        want = raw.view(F8[code]).float()
    elif code == "i8":
        raw = raw.view(torch.int8)
        want = raw.float()
    else:
        places = torch.arange(per_byte) * bits
        want = (((raw[:, None].int() >> places) & (2**bits - 1)) - 2 ** (bits - 1)).flatten().float()
    out = torch.empty(2, len(want), dtype=dtype)
    launch(decode_all, (1,), raw=raw, out=out, CODE=code, PER_BYTE=per_byte)
    for got in out:
        torch.testing.assert_close(got.float(), want, rtol=0, atol=0, equal_nan=True)


def _tried(magnitudes: torch.Tensor) -> torch.Tensor:
    """Magnitudes, the midpoints between them, and the f32 on both sides of each; of both signs."""
    points = torch.cat([magnitudes, (magnitudes[1:] + magnitudes[:-1]) / 2])
    infinity = torch.tensor(torch.inf)
    points = torch.cat([points, points.nextafter(infinity), points.nextafter(-infinity)])
    noise = torch.randn(20000, generator=torch.Generator().manual_seed(0)) * magnitudes.max()
    extremes = torch.tensor([torch.inf, torch.nan, 0.0, 1e-45, 3e38])
    both = torch.cat([points, noise, noise * 2.0**-9, extremes])
    return torch.cat([both, -both])


@pytest.mark.parametrize("code", F8)
def test_floats_are_encoded_as_torch_rounds_them(code: str) -> None:
    largest = KVFormat(code).max_code  # type: ignore[arg-type]
    magnitudes = torch.arange(256, dtype=torch.uint8).view(F8[code]).float().abs()
    x = _tried(magnitudes[magnitudes.isfinite()].unique())
    out = torch.empty(len(x), dtype=torch.uint8)
    launch(encode_all, (triton.cdiv(len(x), 4096),), x=x, out=out, count=len(x), CODE=code, MAX=0)
    got, want = out.view(F8[code]).float(), x.clamp(-largest, largest).to(F8[code]).float()
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("largest", [127, 7, 1])
def test_integers_are_rounded_half_to_even_and_saturate(largest: int) -> None:
    x = _tried(torch.arange(largest + 3).float())
    out = torch.empty(len(x), dtype=torch.int8)
    launch(encode_all, (triton.cdiv(len(x), 4096),), x=x, out=out, count=len(x), CODE="i8", MAX=largest)
    want = x.nan_to_num(nan=0.0, posinf=1e9, neginf=-1e9).clamp(-largest, largest).round()
    torch.testing.assert_close(out.float(), want, rtol=0, atol=0)
