"""What the vendors' products do otherwise than a request says, as reasons. Imports no framework: a "no" must be cheap.

Not served, since nothing that a request permits covers it:

- `torch._weight_int4pack_mm` takes scales rounded to bf16, and formats have theirs in f16 and f32.
- `torch._int_mm` leaves i32 [M, N] in memory, and takes more than 16 rows, so that quantization, product and scales are
  three passes where one kernel of `opsocket_triton` makes one.
- `torch._scaled_mm` multiplies f8 activations, which no weight format has.
- `scaled_dot_product_attention` takes one rectangle of queries and keys at a time, aligns causal masks at the top left,
  and returns no LSE.
"""

from __future__ import annotations

from opsocket.operators import DeviceInfo, MatmulSpec, Reason, Request
from opsocket.quantization import get_format
from opsocket_triton.arches import ARCHES


def refusals(device: DeviceInfo, request: Request) -> tuple[Reason, ...]:
    """Why a product with a dense weight is not served; empty when it is."""
    spec = request.spec
    assert isinstance(spec, MatmulSpec)
    reasons: list[Reason] = []
    if device.numerics != "device":
        want = "the chip: the host's products in its place would say nothing of it"
        reasons.append(Reason("device", "device.numerics", device.numerics, want))
    if not get_format(spec.weight_format).is_float:
        reasons.append(Reason("format", "weight_format", spec.weight_format, ["f32", "f16", "bf16"]))
    elif spec.weight_format != spec.x_dtype:
        want = f"{spec.weight_format}, as the weight has it"
        reasons.append(Reason("dtype", "x_dtype", spec.x_dtype, want))
    if spec.out_dtype not in (spec.x_dtype, "f32"):
        reasons.append(Reason("dtype", "out_dtype", spec.out_dtype, list(dict.fromkeys((spec.x_dtype, "f32")))))
    if spec.x_dtype == "f16" and device.arch == "gfx90a":
        want = "f32 or bf16: its matrix units take f16's subnormal numbers for zeros"
        reasons.append(Reason("dtype", "x_dtype", "f16", want))
    if device.arch.startswith("gfx") and spec.x_dtype != "f32":
        # torch's product of narrow factors into f32 is CUDA's alone, and a bias meets the sum before it is rounded.
        if spec.out_dtype == "f32":
            reasons.append(Reason("dtype", "out_dtype", "f32", spec.x_dtype))
        elif spec.bias:
            reasons.append(Reason("bias", "bias", True, "False: it would be added to what was rounded"))
    return (*reasons, *_sums(device, spec))


def _sums(device: DeviceInfo, spec: MatmulSpec) -> list[Reason]:
    """Factors in f32 are summed in f32, rounded to nearest; narrower ones by matrix units, which cut off."""
    numerics = spec.numerics
    if spec.x_dtype == "f32":
        if numerics.accumulate == "f64":
            return [Reason("accumulate", "numerics.accumulate", "f64", ["f32", "f32_truncating"])]
        return []
    if numerics.accumulate != "f32_truncating":
        return [Reason("accumulate", "numerics.accumulate", numerics.accumulate, "f32_truncating")]
    step = ARCHES[device.arch].chained_products if device.arch in ARCHES else 1
    if numerics.accumulate_step > step:
        want = f"at most {step} here"
        return [Reason("accumulate", "numerics.accumulate_step", numerics.accumulate_step, want)]
    return []
