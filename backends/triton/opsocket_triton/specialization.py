"""What a launch specialized a kernel on: all that a compiler needs to make it for an architecture that is absent."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

Constant = int | float | bool | str | None


@dataclass(frozen=True)
class Specialization:
    """kernel: "module:function". signature: Triton's type of each argument, "constexpr" among them. constants: their
    values. aligned: arguments that are multiples of 16, by name. warps, stages: as launched. near: tensors in less than
    2 GiB of memory, for which AMD's compiler takes other loads."""

    kernel: str
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Constant], ...]
    aligned: tuple[str, ...]
    warps: int
    stages: int
    near: tuple[str, ...] = ()

    def dumps(self) -> str:
        return json.dumps(asdict(self), sort_keys=True, separators=(",", ":"))

    @classmethod
    def loads(cls, text: str) -> Specialization:
        data = json.loads(text)
        pairs = {name: tuple(map(tuple, data[name])) for name in ("signature", "constants")}
        return cls(**{**data, **pairs, "aligned": tuple(data["aligned"]), "near": tuple(data.get("near", ()))})

    def __str__(self) -> str:
        """For people: the function, the types of its tensors, and its constants, but not what is None or False."""
        types = dict.fromkeys(kind.removeprefix("*") for _, kind in self.signature if kind.startswith("*"))
        constants = [f"{name}={value}" for name, value in self.constants if value is not None and value is not False]
        return " ".join([self.kernel.partition(":")[2], ",".join(types), *constants, f"warps={self.warps}"])
