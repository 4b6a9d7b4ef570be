"""Binds calls to the signatures of the functions that they name. A program of its own, which needs nothing but Python
and the libraries: it runs in whatever environment has them.

    python bind_calls.py < calls.json > answers.json
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from importlib import metadata
from typing import Any


def main() -> None:
    # What libraries print while they are imported is not the answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    json.dump([answer(call) for call in json.load(sys.stdin)], answers)


def answer(call: dict[str, Any]) -> dict[str, str]:
    """call: target, positional, named, as in `opsocket.operators.VendorCall`. library: "" where it is not here."""
    module_name, _, path = call["target"].partition(":")
    package = module_name.partition(".")[0]
    if importlib.util.find_spec(package) is None:
        return {"library": "", "problem": f"{package} is not installed"}
    library = _version(package)
    owner: Any = None
    try:
        function: Any = importlib.import_module(module_name)
        for name in path.split("."):
            owner, function = function, getattr(function, name)
    except Exception as error:
        return {"library": library, "problem": f"{type(error).__name__}: {error}"}
    # A kernel of Triton's has the function in it.
    function = getattr(function, "fn", function)
    is_method = inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, path.rpartition(".")[2]))
    values = [None] * (call["positional"] + is_method)
    try:
        signature = inspect.signature(function)
        signature.bind(*values, **dict.fromkeys(call["named"]))
    except (TypeError, ValueError) as error:
        return {"library": library, "problem": f"{error}; the signature is {_signature(function)}"}
    swallowed = [name for name in call["named"] if name not in signature.parameters]
    problem = f"{', '.join(swallowed)}: taken by a catch-all, which says nothing" if swallowed else ""
    return {"library": library, "problem": problem}


def _signature(function: Any) -> str:
    try:
        return str(inspect.signature(function))
    except (TypeError, ValueError):
        return "not to be had"


def _version(package: str) -> str:
    names = metadata.packages_distributions().get(package, [])
    return f"{names[0]} {metadata.version(names[0])}" if names else package


if __name__ == "__main__":
    main()
