"""Four nouns, one level each: Backend (a kind of chip) -> Session (one opened device) -> Plan (one prepared operator),
with Providers (libraries of kernels) that a backend orders.

The law: `supports(request)` says yes <=> `plan(request)` succeeds (ResourceError aside) <=> the result agrees with the
oracle. It holds by construction here: both ask `Backend.pick`, and supported means that it picked a kernel.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from opsocket.operators.capture import CaptureLevel, Graph
from opsocket.operators.contract import Checked
from opsocket.operators.device import Absence, DeviceInfo
from opsocket.operators.errors import PluginError, Reason
from opsocket.operators.ladder import Ladder, VendorCall
from opsocket.operators.layout import CacheLayout, CacheSpec
from opsocket.operators.plan import Plan
from opsocket.operators.request import Request

if TYPE_CHECKING:
    from opsocket.operators.session import Session, SessionOptions

INTERFACE_VERSION = "1.0"


@dataclass(frozen=True)
class BackendInfo:
    """name: what `--backend` takes. version: the plugin's own. api: the interface versions it was written for, as a
    version specifier such as ">=1.0,<2"."""

    name: str
    version: str
    api: str
    vendor: str


Tier = Literal["native", "composed", "none"]


@dataclass(frozen=True)
class Support:
    """The answer to "can you do this". native: one kernel; composed: several general ones; none: see `reasons`.

    passed_over: for each provider asked before the one that serves, why it does not. capture: with which batches a run
    can be captured and replayed.
    """

    tier: Tier
    provider: str = ""
    reasons: tuple[Reason, ...] = ()
    passed_over: tuple[tuple[str, tuple[Reason, ...]], ...] = ()
    capture: CaptureLevel = "never"

    def __bool__(self) -> bool:
        return self.tier != "none"


@dataclass(frozen=True)
class Pick:
    """A kernel that serves a request."""

    plan: type[Plan]
    tier: Tier = "native"


class Provider(Checked, ABC):
    """A library of kernels that a backend can use: a vendor's, a framework's, or our own."""

    name: ClassVar[str]

    @abstractmethod
    def pick(self, device: DeviceInfo, request: Request) -> Pick | tuple[Reason, ...]:
        """The kernel for a request, or every reason why there is none.

        Pure and cheap: no device context, no framework import to say no; it answers for absent devices too.
        """

    def layouts(self, device: DeviceInfo, cache: CacheSpec) -> tuple[CacheLayout, ...]:
        """The layouts that this provider's kernels read and write for a logical cache, preferred first."""
        return ()

    def vendor_calls(self) -> Sequence[VendorCall]:
        """The calls that its kernels make of a library that may be absent, each form once."""
        return ()


def _check_answer(provider: Provider, request: Request, answer: object) -> None:
    """`PluginError` unless a provider's answer is a kernel of the request's operator, or reasons against it."""
    if isinstance(answer, tuple) and answer and all(isinstance(reason, Reason) for reason in answer):
        return
    cause = f"returned {answer!r} where a Pick or a tuple of at least one Reason was wanted"
    if isinstance(answer, Pick):
        plan: object = answer.plan
        if not (isinstance(plan, type) and issubclass(plan, Plan)):
            cause = f"picked {plan!r}, which is no subclass of Plan"
        elif plan.spec_type is not type(request.spec):
            cause = f"picked {plan.__qualname__}, which is no plan of {request.op}"
        elif missing := sorted(getattr(plan, "__abstractmethods__", ())):
            cause = f"picked {plan.__qualname__}, which lacks {', '.join(missing)}"
        else:
            return
    raise PluginError("validated", f"provider {provider.name!r}", f"pick({request.op}) {cause}")


class Backend(Checked, ABC):
    """A kind of chip and how to open one. Construction is cheap and touches no device.

    graph_type: how its sessions, which are `in_place`, capture runs and replay them; None: they can't.
    """

    info: ClassVar[BackendInfo]
    graph_type: ClassVar[type[Graph] | None] = None
    _sealed = ("pick", "supports")

    @abstractmethod
    def devices(self) -> Sequence[DeviceInfo]:
        """The devices present, best first. Creates no device context; imports no framework to say "none"."""

    @abstractmethod
    def providers(self) -> Sequence[Provider]:
        """The providers installed here, in the order in which they are asked."""

    @abstractmethod
    def open(self, device: DeviceInfo, options: SessionOptions) -> Session:
        """A session on one of `devices()`."""

    def absence(self) -> Absence:
        """Why `devices()` is empty; asked only then."""
        return Absence("no device found", "")

    def notes(self) -> Sequence[str]:
        """What a person should know of how it works here, a line each: `opsocket doctor` shows them."""
        return ()

    def ladder(self) -> Ladder | None:
        """How its kernels are verified where the chip is absent; None: they are not."""
        return None

    def pick(
        self,
        device: DeviceInfo,
        request: Request,
        pins: Mapping[str, str] | None = None,
        tuned: Mapping[str, str] | None = None,
    ) -> tuple[Support, type[Plan] | None]:
        """The one place that chooses a kernel. pins: operator -> the only provider that may serve it. tuned: what was
        measured to be fastest here, `Request.work` -> the provider that is asked first."""
        pinned = (pins or {}).get(request.op)
        providers = [p for p in self.providers() if pinned in (None, p.name)]
        first = tuned.get(request.work) if tuned else None
        providers.sort(key=lambda provider: provider.name != first)
        if not providers:
            names = [p.name for p in self.providers()]
            return Support("none", reasons=(Reason("provider", f"operators.{request.op}", pinned, names),)), None
        passed_over: list[tuple[str, tuple[Reason, ...]]] = []
        for provider in providers:
            answer = provider.pick(device, request)
            _check_answer(provider, request, answer)
            if isinstance(answer, Pick):
                capture = "never" if self.graph_type is None else self.graph_type.level(answer.plan)
                return Support(answer.tier, provider.name, (), tuple(passed_over), capture), answer.plan
            passed_over.append((provider.name, answer))
        reasons = dict.fromkeys(reason for _, rs in passed_over for reason in rs)
        # That another library has no such operator at all is no news where one has it and says what is in the way.
        telling = tuple(reason for reason in reasons if reason.field != "op") or tuple(reasons)
        return Support("none", "", telling, tuple(passed_over)), None

    def supports(
        self,
        device: DeviceInfo,
        request: Request,
        pins: Mapping[str, str] | None = None,
        tuned: Mapping[str, str] | None = None,
    ) -> Support:
        """Whether and by which provider a request is served. Pure: `device` need not be present."""
        return self.pick(device, request, pins, tuned)[0]
