"""Which of FlashInfer's kernels serves an attention request. Imports neither it nor a framework to say no."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence

from opsocket.operators import AttentionSpec, DeviceInfo, Pick, Provider, Reason, Request, VendorCall
from opsocket_cuda.flashinfer_provider import refusals

_NEED = "the package flashinfer installed: pip install 'opsocket[flashinfer]'"


class FlashInferProvider(Provider):
    """Attention, where the request permits what FlashInfer's kernels do inside.

    Its other operators do not compute what ours are pinned to: docs/gpu-backends.md lists how they differ.
    """

    name = "flashinfer"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        if not isinstance(request.spec, AttentionSpec):
            return (Reason("operator", "op", request.op, [AttentionSpec.op]),)
        if reasons := refusals.general(device, request):
            return reasons
        reasons = refusals.prefill(device, request)
        in_f32 = refusals.decode(device, request) if reasons else ()
        if reasons and in_f32:
            return tuple(dict.fromkeys((*reasons, *in_f32)))
        if importlib.util.find_spec("flashinfer") is None:
            return (Reason("package", "flashinfer", None, _NEED),)
        from opsocket_cuda.flashinfer_provider import attention

        if reasons:
            return Pick(attention.FlashInferDecode)
        if request.cache is None:
            return Pick(attention.FlashInferRaggedAttention)
        return Pick(attention.FlashInferPagedAttention)

    def vendor_calls(self) -> Sequence[VendorCall]:
        from opsocket_cuda.flashinfer_provider import calls

        return [VendorCall(*call) for call in calls.CALLS]
