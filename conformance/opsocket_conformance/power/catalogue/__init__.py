"""The catalogue of faults: what kernels get wrong, operator by operator. Each must be found by several cases."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache

from opsocket.operators import ContractError
from opsocket_conformance.power.fault import Fault


@cache
def all_faults() -> tuple[Fault, ...]:
    """The `FAULTS` of every module here."""
    modules = (importlib.import_module(f"{__name__}.{found.name}") for found in pkgutil.iter_modules(__path__))
    return tuple(fault for module in modules for fault in module.FAULTS)


def find_fault(name: str) -> Fault:
    """The fault of a name; `ContractError` where there is none."""
    for fault in all_faults():
        if fault.name == name:
            return fault
    raise ContractError("fault", "the name of a fault in the catalogue", repr(name))
