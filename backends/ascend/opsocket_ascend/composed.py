"""Core's composition, without what it would ask of an NPU that an NPU has not."""

from __future__ import annotations

from typing import Final

from opsocket.operators import DeviceInfo, Pick, Reason, Request, RopeSpec, SampleSpec, Spec
from opsocket.operators.composed import ComposedProvider
from opsocket_ascend.torch_provider.refusals import dtype_refusals

_IN_F64: Final[tuple[type[Spec], ...]] = (RopeSpec, SampleSpec)
"""Composed in f64: provider torch has both in whole numbers."""


class NpuComposedProvider(ComposedProvider):
    """Provider `composed` in the types that the chip has."""

    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        if isinstance(request.spec, _IN_F64):
            return (Reason("chip", "device.arch", device.arch, "a device that has f64"),)
        return dtype_refusals(device, request) or super().pick(device, request)
