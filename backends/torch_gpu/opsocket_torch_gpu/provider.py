"""The vendors' products, under the names of their libraries. Imports no framework to say no."""

from __future__ import annotations

import importlib.util

from opsocket.operators import DeviceInfo, MatmulSpec, Pick, Provider, Reason, Request
from opsocket_torch_gpu.refusals import refusals


class _VendorProducts(Provider):
    """Products with dense weights, in the layout that the kernels of `opsocket_triton` read too: an output head that is
    the table of embeddings stays one weight."""

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        if not isinstance(request.spec, MatmulSpec):
            return (Reason("operator", "op", request.op, [MatmulSpec.op]),)
        if reasons := refusals(device, request):
            return reasons
        if importlib.util.find_spec("torch") is None:
            return (Reason("package", "torch", None, "the package torch installed: pip install 'opsocket[triton]'"),)
        from opsocket_torch_gpu.matmul import VendorMatmul

        return Pick(VendorMatmul)


class CublasProvider(_VendorProducts):
    name = "cublas"


class HipblasProvider(_VendorProducts):
    """hipBLASLt, or rocBLAS where torch prefers that."""

    name = "hipblas"
