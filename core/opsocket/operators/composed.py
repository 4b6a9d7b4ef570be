"""Provider `composed`: the rest of a decoder out of general torch operations, for every session of torch tensors.

Not as fast as kernels made for the purpose, and the standard that those are measured against. Each plan states its
method. Importing this module imports no framework; the kernels are imported when one is picked.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import Final

from opsocket.operators.backend import Pick, Provider
from opsocket.operators.device import DeviceInfo
from opsocket.operators.errors import Reason
from opsocket.operators.experts import MoECombineSpec, MoERouteSpec, MoESortSpec
from opsocket.operators.model import AddSpec, RMSNormSpec, RopeSpec, SiluMulSpec, TakeRowsSpec
from opsocket.operators.request import Request, Spec
from opsocket.operators.rope_frequencies import undefined
from opsocket.operators.sampling import ArgmaxSpec, SampleSpec

_KERNELS: Final[dict[type[Spec], tuple[str, str]]] = {
    RMSNormSpec: ("composed_model", "ComposedRMSNorm"),
    RopeSpec: ("composed_rope", "ComposedRope"),
    SiluMulSpec: ("composed_model", "ComposedSiluMul"),
    AddSpec: ("composed_model", "ComposedAdd"),
    TakeRowsSpec: ("composed_model", "ComposedTakeRows"),
    MoERouteSpec: ("composed_experts", "ComposedMoERoute"),
    MoESortSpec: ("composed_experts", "ComposedMoESort"),
    MoECombineSpec: ("composed_experts", "ComposedMoECombine"),
    ArgmaxSpec: ("composed_sampling", "ComposedArgmax"),
    SampleSpec: ("composed_sampling", "ComposedSample"),
}


class ComposedProvider(Provider):
    """Serves everything its operators allow, in tier "composed"."""

    name = "composed"

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        kernel = _KERNELS.get(type(request.spec))
        if kernel is None:
            return (Reason("operator", "op", request.op, sorted(spec.op for spec in _KERNELS)),)
        if importlib.util.find_spec("torch") is None:
            return (Reason("package", "torch", None, "the package torch installed"),)
        if isinstance(request.spec, RopeSpec) and (reasons := undefined(request.spec)):
            return reasons
        module, name = kernel
        return Pick(getattr(importlib.import_module(f"opsocket.operators.{module}"), name), "composed")
