"""Binds calls to the signatures of the functions that they name. A program of its own, which needs nothing but Python
and the libraries: it runs in whatever environment has them.

    python bind_calls.py < calls.json > answers.json

A library that can't be imported without its chip is read instead: its source has the signature too. Where a signature
takes any name, the function's text has to mention each that is given.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

_KINDS = (
    (inspect.Parameter.POSITIONAL_ONLY, "posonlyargs"),
    (inspect.Parameter.POSITIONAL_OR_KEYWORD, "args"),
    (inspect.Parameter.KEYWORD_ONLY, "kwonlyargs"),
)


def main() -> None:
    # What libraries print while they are imported is not the answer.
    answers, sys.stdout = sys.stdout, sys.stderr
    json.dump([answer(call) for call in json.load(sys.stdin)], answers)


def answer(call: dict[str, Any]) -> dict[str, str]:
    """call: target, positional, named, as in `opsocket.operators.VendorCall`. library: "" where it is not here."""
    module, _, path = call["target"].partition(":")
    package = module.partition(".")[0]
    spec = importlib.util.find_spec(package)
    if spec is None:
        return {"library": "", "problem": f"{package} is not installed"}
    library = _version(package)
    try:
        signature, is_method, text = _imported(module, path)
    except Exception as error:
        why = f"{type(error).__name__}: {error}".partition("\n")[0]
        library += " (its source was read: the import failed)"
        try:
            signature, is_method, text = _read(list(spec.submodule_search_locations or ()), spec.origin, module, path)
        except (LookupError, OSError, SyntaxError) as missing:
            return {"library": library, "problem": f"{missing}; {why}"}
    given = [None] * (call["positional"] + is_method)
    try:
        signature.bind(*given, **dict.fromkeys(call["named"]))
    except TypeError as error:
        return {"library": library, "problem": f"{error}; the signature is {signature}"}
    caught = [name for name in call["named"] if name not in signature.parameters]
    unknown = [name for name in caught if not re.search(rf"\b{name}\b", text)]
    problem = f"{', '.join(unknown)}: taken as any name is, and never mentioned" if unknown else ""
    return {"library": library, "problem": problem}


def _imported(module: str, path: str) -> tuple[inspect.Signature, bool, str]:
    """The signature, whether it has a self, and the text that it stands in."""
    owner: Any = None
    function: Any = importlib.import_module(module)
    for name in path.split("."):
        owner, function = function, getattr(function, name)
    is_method = inspect.isclass(owner) and inspect.isfunction(inspect.getattr_static(owner, path.rpartition(".")[2]))
    # A kernel of Triton's has the function in it.
    function = getattr(function, "fn", function)
    return inspect.signature(function), is_method, _text(function)


def _text(function: Any) -> str:
    try:
        return inspect.getsource(inspect.unwrap(function))
    except (OSError, TypeError):
        return ""


def _read(folders: list[str], origin: str | None, module: str, path: str) -> tuple[inspect.Signature, bool, str]:
    """The same from the source of a module. `LookupError` where there is no such function."""
    inner = module.split(".")[1:]
    files = [Path(folder, *inner) for folder in folders]
    candidates = [f.with_suffix(".py") for f in files] + [f / "__init__.py" for f in files]
    candidates += [Path(origin)] if origin and not inner else []
    file = next((each for each in candidates if each.is_file()), None)
    if file is None:
        raise LookupError(f"{module} has no source")
    source = file.read_text(encoding="utf-8")
    body: list[ast.stmt] = ast.parse(source).body
    found: ast.stmt | None = None
    parent: ast.stmt | None = None
    for name in path.split("."):
        parent, found = found, next((node for node in body if getattr(node, "name", None) == name), None)
        if found is None:
            raise LookupError(f"{module} defines no {path}")
        body = getattr(found, "body", [])
    if not isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)):
        raise LookupError(f"{module}:{path} is no function")
    static = any(getattr(decorator, "id", "") == "staticmethod" for decorator in found.decorator_list)
    is_method = isinstance(parent, ast.ClassDef) and not static
    return _signature(found.args), is_method, ast.get_source_segment(source, found) or ""


def _signature(arguments: ast.arguments) -> inspect.Signature:
    parameters = []
    plain = [*arguments.posonlyargs, *arguments.args]
    defaults = len(plain) - len(arguments.defaults)
    optional = {argument.arg for argument in plain[defaults:]}
    optional |= {
        a.arg for a, value in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if value is not None
    }
    for kind, name in _KINDS:
        for argument in getattr(arguments, name):
            default = None if argument.arg in optional else inspect.Parameter.empty
            parameters.append(inspect.Parameter(argument.arg, kind, default=default))
        if name == "args" and arguments.vararg is not None:
            parameters.append(inspect.Parameter(arguments.vararg.arg, inspect.Parameter.VAR_POSITIONAL))
    if arguments.kwarg is not None:
        parameters.append(inspect.Parameter(arguments.kwarg.arg, inspect.Parameter.VAR_KEYWORD))
    return inspect.Signature(parameters)


def _version(package: str) -> str:
    names = metadata.packages_distributions().get(package, [])
    return f"{names[0]} {metadata.version(names[0])}" if names else package


if __name__ == "__main__":
    main()
