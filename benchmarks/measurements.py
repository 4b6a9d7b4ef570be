"""Results of operators.py, whole_model.py and `opsocket limits --json`, read back and checked."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OURS = "opsocket"
LIMITS = {"read": "a raw read", **{kind: f"the {kind} rate" for kind in ("int8", "bf16", "f32")}}


class ResultsError(ValueError):
    """A results file that can't be used: names the file, the field, and what was expected there."""


@dataclass(frozen=True)
class Operator:
    """One system's runs of one operator. size: bytes of weights or cache that a call reads. limit: what decides, as
    in operators.py. facts: the case, as its worker was given it."""

    system: str
    kind: str
    label: str
    limit: str
    operations: float
    size: float
    facts: dict[str, Any]
    seconds: tuple[float, ...]
    limit_rates: tuple[float, ...]

    @property
    def median(self) -> float:
        """Of its seconds."""
        return statistics.median(self.seconds)

    @property
    def rate(self) -> float:
        """Bytes or operations per second, as the limit counts."""
        return (self.size if self.limit == "read" else self.operations) / self.median


@dataclass(frozen=True)
class Comparison:
    """Our run of an operator beside the fastest other system's, if there is one. limit: bytes or operations per second
    that the machine reached beside all runs of it, the median."""

    ours: Operator
    best: Operator | None
    limit: float

    @property
    def reached(self) -> float:
        """Our share of the limit."""
        return self.ours.rate / self.limit

    @property
    def times(self) -> float | None:
        """The other's time over ours: the work is the same, though not the bytes that each reads for it."""
        return None if self.best is None else self.best.median / self.ours.median


@dataclass(frozen=True)
class Run:
    """One system's runs of one whole-model case, in tokens per second of all sequences."""

    system: str
    prompt: int
    batch: int
    prompt_rates: tuple[float, ...]
    decode_rates: tuple[float, ...]


@dataclass(frozen=True)
class Limit:
    """name: read, or the kind of number that it computes. threads: None is all. per_second: bytes or operations."""

    name: str
    threads: int | None
    per_second: float


@dataclass
class Measured:
    """All that some files hold. machine: processor and, where a file has them, threads."""

    machine: str = ""
    operators: list[Operator] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    limits: list[Limit] = field(default_factory=list)


def compared(operators: Sequence[Operator]) -> list[Comparison]:
    """Each operator that we were measured on."""
    cases: dict[tuple[str, str], list[Operator]] = defaultdict(list)
    for operator in operators:
        cases[operator.kind, operator.label].append(operator)
    found = []
    for runs in cases.values():
        others = [run for run in runs if run.system != OURS]
        limit = statistics.median(rate for run in runs for rate in run.limit_rates)
        best = min(others, key=lambda run: run.median, default=None)
        found += [Comparison(run, best, limit) for run in runs if run.system == OURS]
    return found


@dataclass(frozen=True)
class Field:
    """A value in a file, which knows where it stands."""

    file: Path
    place: str
    value: Any

    def wrong(self, expected: str) -> ResultsError:
        found = json.dumps(self.value)
        return ResultsError(
            f"{self.file}: {self.place or 'the file'}: expected {expected}, got {found[:60]}{'...' * (len(found) > 60)}"
        )

    def __getitem__(self, name: str) -> Field:
        if not isinstance(self.value, dict):
            raise self.wrong("an object")
        place = f"{self.place}.{name}" if self.place else name
        if name not in self.value:
            raise ResultsError(f"{self.file}: {place}: missing")
        return Field(self.file, place, self.value[name])

    def __iter__(self) -> Iterator[Field]:
        if not isinstance(self.value, list):
            raise self.wrong("a list")
        return (Field(self.file, f"{self.place}[{i}]", value) for i, value in enumerate(self.value))

    def has(self, name: str) -> bool:
        return isinstance(self.value, dict) and name in self.value

    def text(self) -> str:
        if not isinstance(self.value, str):
            raise self.wrong("a text")
        return self.value

    def number(self) -> float:
        """Positive and finite."""
        good = isinstance(self.value, int | float) and not isinstance(self.value, bool)
        if not good or not math.isfinite(self.value) or self.value <= 0:
            raise self.wrong("a positive number")
        return float(self.value)

    def numbers(self) -> tuple[float, ...]:
        found = tuple(value.number() for value in self)
        if not found:
            raise self.wrong("at least one number")
        return found


def load(paths: Sequence[Path]) -> Measured:
    """Everything in these files; what is measured in several counts as the last has it. ResultsError where a file can't
    be read or is no results file."""
    measured = Measured()
    operators: dict[tuple[str, str, str], Operator] = {}
    runs: dict[tuple[str, int, int], Run] = {}
    machines = {}
    for path in paths:
        try:
            root = Field(path, "", json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise ResultsError(f"{path}: {error}") from None
        if root.has("limits"):
            machines["limits"] = root["device_name"].text()
            measured.limits += [_limit(row) for row in root["limits"]]
        elif root.has("rows"):
            host = f"{root['cpu'].text()}, {root['threads'].number():g} threads"
            machines["rows"] = root["device"].text() if root.has("device") else host
            for row in root["rows"]:
                if row["case"].has("kind"):
                    operator = _operator(row)
                    operators[operator.system, operator.kind, operator.label] = operator
                else:
                    run = _run(row)
                    runs[run.system, run.prompt, run.batch] = run
        else:
            raise root.wrong("what operators.py, whole_model.py or `opsocket limits --json` wrote")
    measured.machine = machines.get("rows") or machines.get("limits", "")
    measured.operators, measured.runs = list(operators.values()), list(runs.values())
    return measured


def _limit(row: Field) -> Limit:
    threads = row["threads"]
    everywhere = threads.value in (None, 0)  # 0: what is no host has none
    return Limit(row["name"].text(), None if everywhere else int(threads.number()), row["per_second"].number())


def _operator(row: Field) -> Operator:
    case = row["case"]
    facts = case["facts"]
    is_product = facts["op"].text() in ("matmul", "grouped_matmul")
    for name in ("n", "k", "m") if is_product else ("context", "batch", "q_heads", "head_dim"):
        facts[name].number()
    facts["format" if is_product else "cache"].text()
    return Operator(
        row["system"].text(), case["kind"].text(), case["label"].text(), case["limit"].text(),
        case["operations"].number(), row["size"].number(), facts.value, row["seconds"].numbers(),
        row["limit_rates"].numbers(),
    )  # fmt: skip


def _run(row: Field) -> Run:
    case = row["case"]
    return Run(
        row["system"].text(), int(case["prompt"].number()), int(case["batch"].number()),
        row["prompt_rates"].numbers(), row["decode_rates"].numbers(),
    )  # fmt: skip
