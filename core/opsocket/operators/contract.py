"""The check of a plugin's class when it is defined, not when it is first called.

Prevents: a backend overrides a hook under an old or misspelt name, the base's default runs instead, and nobody
notices until the numbers are wrong.
"""

from __future__ import annotations

import inspect
from typing import Any

from opsocket.operators.errors import PluginError

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


class Checked:
    """Base of what a plugin inherits. A subclass adds only private names and overrides with the same signature.

    `_sealed` names methods that hold the interface's own rules (validation, selection) and can't be overridden.
    """

    _sealed: tuple[str, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if cls.__module__.partition(".")[0] == "opsocket":
            return
        for name, member in vars(cls).items():
            base = _inherited(cls, name)
            if base is None:
                if _callable(member) and not name.startswith("__"):
                    _check_new(cls, name)
                continue
            if any(name in vars_of for vars_of in (getattr(b, "_sealed", ()) for b in cls.__mro__[1:])):
                raise _broken(cls, f"{name!r} is the interface's own and can't be overridden")
            if _callable(member) and _callable(base):
                _check_signature(cls, name, _function(base), _function(member))


def _inherited(cls: type, name: str) -> Any:
    if name.startswith("__"):
        return None
    for base in cls.__mro__[1:]:
        if name in vars(base):
            return vars(base)[name]
    return None


def _callable(member: Any) -> bool:
    return inspect.isfunction(member) or isinstance(member, staticmethod | classmethod)


def _function(member: Any) -> Any:
    return member.__func__ if isinstance(member, staticmethod | classmethod) else member


def _check_signature(cls: type, name: str, base: Any, override: Any) -> None:
    want, got = inspect.signature(base).parameters, inspect.signature(override).parameters
    if any(p.kind is p.VAR_KEYWORD for p in got.values()) and any(p.kind is p.VAR_POSITIONAL for p in got.values()):
        return
    wanted, given = list(want.values()), list(got.values())
    for i, p in enumerate(wanted):
        q = got.get(p.name)
        if q is None:
            raise _broken(
                cls,
                f"{name}{inspect.signature(override)} lacks parameter {p.name!r} of {name}{inspect.signature(base)}",
            )
        if p.kind in _POSITIONAL and (given.index(q) != i or q.kind not in _POSITIONAL):
            raise _broken(cls, f"{name}: parameter {p.name!r} must be positional number {i}, as in the interface")
    for q in given:
        if q.name not in want and q.default is q.empty and q.kind not in (q.VAR_POSITIONAL, q.VAR_KEYWORD):
            raise _broken(cls, f"{name}: parameter {q.name!r} is not in the interface and has no default")


def _check_new(cls: type, name: str) -> None:
    """A method that no base has: a private helper, and not one whose name is a hook's but for a slip."""
    import difflib

    known = {n for b in cls.__mro__[1:] for n, m in vars(b).items() if not n.startswith("__") and _callable(m)}
    close = difflib.get_close_matches(name, sorted(known), 1, 0.85 if name.startswith("_") else 0.5)
    if not name.startswith("_"):
        meant = f"; was {close[0]!r} meant?" if close else " (helpers are named with a leading underscore)"
        raise _broken(cls, f"method {name!r} is not part of the interface{meant}")
    if close:
        raise _broken(cls, f"method {name!r} is never called; was {close[0]!r} meant? (else name the helper otherwise)")


def _broken(cls: type, cause: str) -> PluginError:
    return PluginError("validated", f"{cls.__module__}.{cls.__qualname__}", cause)
