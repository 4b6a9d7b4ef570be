"""What FlashInfer's attention does otherwise than a request says, as reasons. Imports nothing of it, and no framework.

Read in its sources (0.7, include/flashinfer: attention/variants.cuh, prefill.cuh, decode.cuh, mla.cuh, math.cuh):

- Prefill kernels multiply on matrix units, which cut off sums, with probabilities rounded to q's type; their
  denominators are sums of what was rounded. The decode kernels multiply in f32.
- Exponentials are ex2.approx of a product; tanh is tanh.approx, 2^-11 relative.
- ALiBi's slopes are its own, its distance is not from the query's position, and it comes before the softcap.
- Sinks that `run` takes are not read by these kernels.
- A scale of V multiplies the output that was rounded already.
- f8 codes become bf16, and below compute capability 9.0 f16 too, by shifts that read NaN as a number.
- Latent attention rounds the parts of split keys to the output's type before it merges them.
"""

from __future__ import annotations

from typing import Final

from opsocket.operators import AttentionSpec, CacheSpec, DeviceInfo, KVFormat, Reason, Request
from opsocket_cuda.flashinfer_provider.tables import is_causal
from opsocket_triton import layouts
from opsocket_triton.arches import ARCHES

HEAD_DIMS: Final = (64, 128, 256)
RAGGED_HEAD_DIMS: Final = ((64, 64), (128, 128), (256, 256), (192, 128))
DECODE_GROUPS: Final = (1, 2, 3, 4, 6, 8, 16)
"""Query heads of a KV head that the decode kernels are compiled for."""
_HARDWARE_F8: Final = 90


def general(device: DeviceInfo, request: Request) -> tuple[Reason, ...]:
    """What no kernel of FlashInfer's can do; empty where one may."""
    spec, cache = request.spec, request.cache
    assert isinstance(spec, AttentionSpec)
    reasons: list[Reason] = []
    if device.numerics != "device":
        want = "the chip: FlashInfer's kernels are binaries for it"
        reasons.append(Reason("device", "device.numerics", device.numerics, want))
    if (capability := compute_capability(device)) < 80:
        reasons.append(Reason("arch", "device.arch", device.arch, "sm_80 or later"))
    if spec.q_dtype not in ("f16", "bf16"):
        reasons.append(Reason("dtype", "q_dtype", spec.q_dtype, ["f16", "bf16"]))
    if spec.out_dtype != spec.q_dtype:
        reasons.append(Reason("dtype", "out_dtype", spec.out_dtype, f"{spec.q_dtype}, as q has it"))
    if spec.softcap is not None:
        reasons.append(Reason("tanh", "softcap", spec.softcap, "None: its tanh errs by 2^-11, beyond what any permits"))
    if spec.alibi:
        reasons.append(Reason("alibi", "alibi", True, "False: its slopes are its own"))
    if spec.sinks:
        reasons.append(Reason("sinks", "sinks", True, "False: its kernels do not read them"))
    if spec.mask == "full" and spec.window_right:
        reasons.append(Reason("window", "window_right", spec.window_right, [None, 0]))
    if spec.numerics.exp != "approx":
        reasons.append(Reason("exp", "numerics.exp", spec.numerics.exp, "approx"))
    if cache is None:
        if spec.kv_dtype != spec.q_dtype:
            reasons.append(Reason("dtype", "kv_dtype", spec.kv_dtype, f"{spec.q_dtype}, as q has it"))
    else:
        reasons += _cache(spec, cache, capability)
        reasons += layouts.refusals(cache, request.layout)
    return tuple(reasons)


def prefill(device: DeviceInfo, request: Request) -> tuple[Reason, ...]:
    """Why the kernels on matrix units do not serve a request that `general` has nothing against."""
    spec, cache = request.spec, request.cache
    assert isinstance(spec, AttentionSpec)
    numerics, reasons = spec.numerics, list[Reason]()
    if spec.scale <= 0:
        want = "above 0: the largest logit is looked for before it is scaled"
        reasons.append(Reason("scale", "scale", spec.scale, want))
    if numerics.probabilities != spec.q_dtype:
        want = f"{spec.q_dtype}, as q has it"
        reasons.append(Reason("probabilities", "numerics.probabilities", numerics.probabilities, want))
    if numerics.accumulate != "f32_truncating":
        reasons.append(Reason("accumulate", "numerics.accumulate", numerics.accumulate, "f32_truncating"))
    elif numerics.accumulate_step > (step := _chained(device)):
        reasons.append(
            Reason("accumulate", "numerics.accumulate_step", numerics.accumulate_step, f"at most {step} here")
        )
    if spec.want_lse and spec.q_dtype == "bf16":
        # Sums of probabilities rounded to f16 err by 2^-11 at most, as two approximate exponentials do; bf16 by more.
        reasons.append(Reason("lse", "want_lse", True, "False: its sum is of probabilities rounded to bf16"))
    dims = (spec.head_dim_qk, spec.head_dim_vo)
    if cache is None:
        if dims not in RAGGED_HEAD_DIMS:
            reasons.append(Reason("head_dim", "head_dim_qk, head_dim_vo", dims, list(RAGGED_HEAD_DIMS)))
        if spec.mask == "tree":
            reasons.append(Reason("mask", "mask", "tree", "a cache: the mask is packed for pages"))
    else:
        reasons += _equal_dims(spec)
        reasons += _codes("k", spec, cache.k, compute_capability(device))
        if cache.v is not None:
            reasons += _codes("v", spec, cache.v, compute_capability(device))
    return tuple(reasons)


def decode(device: DeviceInfo, request: Request) -> tuple[Reason, ...]:
    """Why the kernels for one query each, in f32, do not serve a request that `general` has nothing against."""
    spec, cache = request.spec, request.cache
    assert isinstance(spec, AttentionSpec)
    reasons: list[Reason] = []
    if request.bounds.max_q_len != 1:
        reasons.append(Reason("bounds", "bounds.max_q_len", request.bounds.max_q_len, 1))
    if cache is None:
        reasons.append(Reason("cache", "cache", None, "a paged cache"))
    if spec.numerics.accumulate == "f64":
        reasons.append(Reason("accumulate", "numerics.accumulate", "f64", ["f32", "f32_truncating"]))
    if spec.mask == "tree":
        reasons.append(Reason("mask", "mask", "tree", ["causal", "full"]))
    if spec.window_left is not None or (spec.window_right is not None and not is_causal(spec)):
        reasons.append(Reason("window", "window_left", spec.window_left, "None: positions may be other than the last"))
    if spec.group not in DECODE_GROUPS:
        reasons.append(Reason("heads", "num_q_heads / num_kv_heads", spec.group, list(DECODE_GROUPS)))
    reasons += _equal_dims(spec)
    return tuple(reasons)


def compute_capability(device: DeviceInfo) -> int:
    """Such as 90 of an sm_90; 0 of what is no NVIDIA GPU."""
    number = device.arch.removeprefix("sm_")
    return int(number) if number.isdigit() else 0


def _chained(device: DeviceInfo) -> int:
    return ARCHES[device.arch].chained_products if device.arch in ARCHES else 1


def _equal_dims(spec: AttentionSpec) -> list[Reason]:
    if spec.head_dim_qk != spec.head_dim_vo:
        want = f"{spec.head_dim_qk}, as head_dim_qk"
        return [Reason("head_dim", "head_dim_vo", spec.head_dim_vo, want)]
    if spec.head_dim_qk not in HEAD_DIMS:
        return [Reason("head_dim", "head_dim_qk", spec.head_dim_qk, list(HEAD_DIMS))]
    return []


def _cache(spec: AttentionSpec, cache: CacheSpec, capability: int) -> list[Reason]:
    pairs = (
        ("num_kv_heads", spec.num_kv_heads, cache.num_kv_heads),
        ("head_dim_qk", spec.head_dim_qk, cache.head_dim_k),
        ("head_dim_vo", spec.head_dim_vo, cache.head_dim_v),
    )
    reasons = [Reason("cache", name, got, f"{want}, as the cache has it") for name, got, want in pairs if got != want]
    if cache.v is None:
        reasons.append(
            Reason("cache", "cache.kind", cache.kind, "kv: its latent attention rounds parts before merging")
        )
        return reasons
    if cache.k.code != cache.v.code:
        reasons.append(Reason("cache", "cache.v.code", cache.v.code, f"{cache.k.code}, as cache.k has it"))
    allowed = (spec.q_dtype, "f8e4m3fn", "f8e5m2")
    if cache.k.code not in allowed:
        reasons.append(Reason("cache", "cache.k.code", cache.k.code, list(allowed)))
    if cache.k.is_quantized and cache.k.granularity not in ("none", "tensor"):
        reasons.append(Reason("cache", "cache.k.granularity", cache.k.granularity, ["none", "tensor"]))
    if cache.v.is_quantized and cache.v.granularity != "none":
        want = "none: its scale multiplies what was rounded already"
        reasons.append(Reason("cache", "cache.v.granularity", cache.v.granularity, want))
    return reasons


def _codes(name: str, spec: AttentionSpec, fmt: KVFormat, capability: int) -> list[Reason]:
    if not fmt.is_quantized or (spec.q_dtype == "f16" and capability >= _HARDWARE_F8):
        return []
    want = f"{spec.q_dtype}, as q has it: f8 becomes bf16, and below sm_90 f16, by shifts that read NaN as a number"
    return [Reason("cache", f"cache.{name}.code", fmt.code, want)]
