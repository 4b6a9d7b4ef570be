"""What a backend can prove of its kernels where their chip is absent, in words that name no chip.

The rungs of a ladder, each of which says less than a run on the device: numbers, by something that stands in for the
chip; artifacts, made from what was launched while the numbers were; controls, which are wrong on purpose and have to be
refused; calls of the vendor's libraries, bound to their real signatures. `opsocket verify` climbs it, and its report
says which rungs were reached.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from opsocket.operators.contract import Checked

if TYPE_CHECKING:
    from opsocket.operators.plan import Plan

Fact = float | int | str | tuple[str, ...]


@dataclass(frozen=True)
class Artifact:
    """What one launch became for one architecture, short of running on it.

    kernel, variant: its name, and what it was specialized to, for people. facts: what can be read from it, by name.
    problems: why it is refused, none where it is right. accepted: what would be a problem, with the written reason why
    it is none. seconds: that it took to make.
    """

    kernel: str
    variant: str
    arch: str
    facts: Mapping[str, Fact] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    accepted: tuple[str, ...] = ()
    seconds: float = 0.0


@dataclass(frozen=True)
class WrongKernel:
    """A control: a kernel that is wrong on purpose. The suite's cases of its operator and type, which it then serves in
    the right kernel's place, have to be red. wrong: what it does. finding: what the cases say of it, among other words.
    case: text in the id of the case that it is put to, the first plain one where ""; or the whole id of any case.
    """

    name: str
    wrong: str
    operator: str
    dtype: str
    finding: str
    case: str = ""


@dataclass(frozen=True)
class WrongLaunch:
    """A control: a launch whose artifact has to be refused for one architecture. record: as `Ladder.recorded` gives
    them. problem: how what is said of it begins."""

    name: str
    wrong: str
    arch: str
    record: str
    problem: str


@dataclass(frozen=True)
class VendorCall:
    """A call that a provider makes of a library, to be bound to the library's real signature where that is installed.

    target: "package.module:Class.method". positional: how many arguments go by position, `self` not counted. named:
    those that go by name.
    """

    target: str
    positional: int = 0
    named: tuple[str, ...] = ()


class Ladder(Checked, ABC):
    """How a backend's kernels are seen without their chip.

    numerics: what stands in for it. artifact: what `make` makes, where `kind_of` does not say otherwise: "compiled", of
    kernels of the backend's own, by the compiler that ships; "schema", calls of a vendor's library, held against that
    library's own checks. arches: all that there are; usual: those that are taken where none is asked for, all where it
    is empty. limits: what none of this shows, a sentence each, for the report.
    """

    numerics: ClassVar[Literal["interpreted", "emulated"]]
    artifact: ClassVar[Literal["compiled", "schema"]]
    arches: tuple[str, ...] = ()
    usual: tuple[str, ...] = ()
    limits: tuple[str, ...] = ()

    @abstractmethod
    def environment(self, arch: str) -> Mapping[str, str]:
        """The environment of a process in which the backend's devices end with one that stands in for `arch`."""

    @abstractmethod
    def record(self, rehearse: bool = False) -> None:
        """From now on, take down what this process launches. rehearse: and do not carry it out, so that only what would
        be launched is known. Asked in a process in which a device is open, before anything is launched."""

    @abstractmethod
    def recorded(self) -> tuple[str, ...]:
        """What was launched since the last call, each different launch once, as text that `make` understands."""

    @abstractmethod
    def trace(self) -> str:
        """A digest of all launches since the last call: kernels, constants, numbers, shapes, in order. Where the same
        calls on two architectures have the same trace, stand-ins for the two compute the same."""

    @abstractmethod
    def kernel_of(self, record: str) -> str:
        """The name of the kernel that was launched."""

    def kind_of(self, record: str) -> Literal["compiled", "schema"]:
        """What an artifact of this launch is: for a ladder that makes both."""
        return self.artifact

    def makes(self, record: str) -> bool:
        """Whether this machine has what an artifact of this launch is made with. Of one that it can't make nothing is
        proven, and nothing is wrong: `limits` says what is missing."""
        return True

    @abstractmethod
    def make(
        self, wanted: Sequence[tuple[str, str]], jobs: int, on_artifact: Callable[[Artifact], None]
    ) -> Sequence[Artifact]:
        """The artifact of each (record, architecture), in order; `on_artifact` is told of each as it is made. In any
        process, by so many at the same time. What can't be made is an artifact with a problem."""

    def wrong_kernels(self, arch: str) -> Sequence[WrongKernel]:
        """Controls for the suite, on a stand-in for an architecture: of what that serves."""
        return ()

    def wrong_plan(self, name: str) -> type[Plan]:
        """The kernel of one of them. Asked in a process in which a stand-in is open."""
        raise KeyError(name)

    def wrong_launches(self, arch: str) -> Sequence[WrongLaunch]:
        """Controls for `make`."""
        return ()
