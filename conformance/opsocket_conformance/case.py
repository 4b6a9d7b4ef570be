"""A case: one question put to a backend, as data. Its id says it all, and is the way to ask it again.

attention[hq=14,hkv=2,d=64,batch=decode,x=peaky]#0
"""

from __future__ import annotations

import dataclasses
import hashlib
import re
import types
import typing
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import numpy as np

from opsocket.operators import ContractError
from opsocket_conformance import SUITE_VERSION
from opsocket_conformance.bench import Bench

Tier = Literal["smoke", "default", "full", "large"]
TIERS: Final[tuple[Tier, ...]] = ("smoke", "default", "full", "large")


class Check(ABC):
    """What is asked and how it is judged: a frozen dataclass of ints, floats, strings and flags.

    name: the first word of its ids. shown: fields that ids name even where they are as by default. operator: the
    operator that it counts for.
    """

    name: ClassVar[str]
    shown: ClassVar[tuple[str, ...]] = ()

    @property
    @abstractmethod
    def operator(self) -> str: ...

    @abstractmethod
    def features(self) -> frozenset[str]:
        """What a backend needs to be able to do, in the words that profiles are written in."""

    @abstractmethod
    def run(self, bench: Bench, rng: np.random.Generator) -> None:
        """Ask, judge, and leave the findings on the bench. Raises `Denied` where the backend says no."""


@dataclass(frozen=True)
class Case:
    """draw: which random numbers. tier: the smallest run that includes it."""

    check: Check
    draw: int = 0
    tier: Tier = "default"

    @property
    def id(self) -> str:
        values = (
            f"{f.name}={_text(getattr(self.check, f.name))}"
            for f in dataclasses.fields(typing.cast(Any, self.check))
            if f.name in self.check.shown or getattr(self.check, f.name) != f.default
        )
        return f"{self.check.name}[{','.join(values)}]#{self.draw}"

    def seed(self, base: int) -> int:
        """hash(case id, suite version, base)."""
        return int.from_bytes(_digest(self.id, SUITE_VERSION, str(base))[:16], "little")

    def rng(self, base: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64(self.seed(base)))


def parse_case(text: str, checks: Iterable[type[Check]]) -> Case:
    """The case of an id; `ContractError` names what in it is wrong."""
    match = re.fullmatch(r"\s*([a-z_0-9]+)\[([^\[\]]*)\]#(\d+)\s*", text)
    if match is None:
        raise ContractError("case", "an id such as attention[hq=14,hkv=2,d=64]#0", repr(text))
    known = {check.name: check for check in checks}
    if match[1] not in known:
        raise ContractError("case", f"a check among {sorted(known)}", repr(match[1]))
    cls = known[match[1]]
    hints = typing.get_type_hints(cls)
    fields = {f.name: hints[f.name] for f in dataclasses.fields(typing.cast(Any, cls))}
    values: dict[str, Any] = {}
    for item in filter(None, match[2].split(",")):
        key, _, value = item.partition("=")
        if key not in fields:
            raise ContractError(f"case.{key}", f"one of {sorted(fields)}", repr(item))
        values[key] = _value(f"case.{key}", fields[key], value)
    try:
        return Case(cls(**values), int(match[3]))
    except TypeError as error:
        raise ContractError("case", f"every field of {cls.name}", str(error)) from None


def shard(cases: Iterable[Case], number: int, count: int) -> list[Case]:
    """The cases of shard `number` of `count` (from 1), in their order: dealt out by the hash of their ids, so that
    shards are of one size, and a case moves only where cases come or go."""
    ordered = list(cases)
    dealt = sorted(ordered, key=lambda case: _digest(case.id))[number - 1 :: count]
    mine = {case.id for case in dealt}
    return [case for case in ordered if case.id in mine]


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\0".join(parts).encode()).digest()


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    return repr(value) if isinstance(value, float) else str(value)


def _value(path: str, hint: Any, text: str) -> Any:
    if isinstance(hint, types.UnionType):
        hint = next(a for a in typing.get_args(hint) if a is not type(None))
    try:
        if hint is bool:
            return {"0": False, "1": True}[text]
        return hint(text)
    except (ValueError, KeyError):
        raise ContractError(path, hint.__name__, repr(text)) from None
