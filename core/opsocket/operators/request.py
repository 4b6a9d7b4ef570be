"""One request, one truth: what is asked of a backend, as frozen, hashable, JSON-round-trip data.

The same `Request` drives `supports`, `plan`, the support matrix, the conformance cases and the traces, so that these
can't disagree about what was asked.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from opsocket.operators.codec import decode, encode
from opsocket.operators.errors import ContractError
from opsocket.operators.layout import CacheLayout, CacheSpec


class Spec:
    """Base of every operator's spec: a frozen dataclass whose `op` is the operator's name in JSON and on screens."""

    op: ClassVar[str]
    uses_cache: ClassVar[str] = "never"  # "never" | "optional" | "always"

    _by_op: ClassVar[dict[str, type[Spec]]] = {}

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if cls.__name__.startswith("_"):
            return
        other = Spec._by_op.setdefault(cls.op, cls)
        if other is not cls and other.__qualname__ != cls.__qualname__:
            raise ContractError("op", "a name that no other operator has", f"{cls.op!r} of {other.__qualname__}")

    @staticmethod
    def of(op: str) -> type[Spec]:
        """The spec class of an operator's name."""
        import opsocket.operators as _all  # noqa: F401  (defines every family)

        try:
            return Spec._by_op[op]
        except KeyError:
            raise ContractError("op", f"one of {sorted(Spec._by_op)}", repr(op)) from None


@dataclass(frozen=True)
class Bounds:
    """Upper bounds that size buffers and launches; they never enter a mask comparison. None: not bounded.

    max_tokens: rows of the packed token dimension; max_batch: sequences; max_q_len, max_kv_len: per sequence.
    """

    max_tokens: int | None = None
    max_batch: int | None = None
    max_q_len: int | None = None
    max_kv_len: int | None = None

    def __post_init__(self) -> None:
        for f in fields(self):
            value = getattr(self, f.name)
            if value is not None and value < 0:
                raise ContractError(f"bounds.{f.name}", "at least 0, or None", value)


@dataclass(frozen=True)
class Request:
    """What one plan will do.

    spec: the operator's own facts. cache: the cache it reads or writes, None where it takes none (attention over
    contiguous keys and values). layout: the physical layout of that cache; None means the session's first choice.
    """

    spec: Spec
    cache: CacheSpec | None = None
    layout: CacheLayout | None = None
    bounds: Bounds = Bounds()

    def __post_init__(self) -> None:
        if not isinstance(self.spec, Spec):
            raise ContractError("spec", "an operator's spec", type(self.spec).__name__)
        if self.cache is None and self.spec.uses_cache == "always":
            raise ContractError("cache", f"the CacheSpec that {self.op} works on", None)
        if self.cache is not None and self.spec.uses_cache == "never":
            raise ContractError("cache", f"None: {self.op} takes no cache", "a CacheSpec")
        if self.layout is not None and self.cache is None:
            raise ContractError("layout", "None where there is no cache", self.layout.id)

    @property
    def op(self) -> str:
        return self.spec.op

    @property
    def work(self) -> str:
        """Canonical text of what is computed, on which cache: without layout and bounds."""
        work = {"op": self.op, "spec": encode(self.spec), "cache": encode(self.cache)}
        return json.dumps(work, sort_keys=True, separators=(",", ":"))

    def to_json(self) -> dict[str, Any]:
        return {
            "op": self.op,
            "spec": encode(self.spec),
            "cache": encode(self.cache),
            "layout": encode(self.layout),
            "bounds": encode(self.bounds),
        }

    def dumps(self) -> str:
        """Canonical text: equal requests give equal text."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))

    @classmethod
    def from_json(cls, data: object) -> Request:
        """The inverse of `to_json`; `ContractError` names the path of whatever is wrong."""
        if not isinstance(data, dict):
            raise ContractError("request", "a JSON object", type(data).__name__)
        known = {"op", "spec", "cache", "layout", "bounds"}
        if unknown := sorted(set(data) - known):
            raise ContractError(f"request.{unknown[0]}", f"one of {sorted(known)}", "an unknown key")
        for key in ("op", "spec"):
            if key not in data:
                raise ContractError(f"request.{key}", "a value", "nothing")
        cache, layout, bounds = data.get("cache"), data.get("layout"), data.get("bounds")
        return cls(
            spec=decode(Spec.of(data["op"]), data["spec"], "request.spec"),
            cache=None if cache is None else decode(CacheSpec, cache, "request.cache"),
            layout=None if layout is None else decode(CacheLayout, layout, "request.layout"),
            bounds=Bounds() if bounds is None else decode(Bounds, bounds, "request.bounds"),
        )

    @classmethod
    def loads(cls, text: str) -> Request:
        try:
            return cls.from_json(json.loads(text))
        except (json.JSONDecodeError, RecursionError) as error:
            raise ContractError("request", "JSON text", str(error)) from None
