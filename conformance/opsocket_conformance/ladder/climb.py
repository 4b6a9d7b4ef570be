"""From a run's results to the rungs above it: artifacts of what was launched, controls, bindings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opsocket.operators import Artifact, Backend, ContractError, DeviceInfo, Ladder
from opsocket_conformance.isolation import Pool
from opsocket_conformance.ladder.bindings import bind
from opsocket_conformance.ladder.controls import ask_kernels, ask_launches
from opsocket_conformance.ladder.section import Climbed, Launch, launches_of
from opsocket_conformance.verdicts import Result

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig


SLOWER: Final = 15.0
"""How many times longer than on a device a case may take on a stand-in."""


@dataclass(frozen=True)
class Ground:
    """Where the numbers of a climb come from. environment: of the processes that compute them. arches: that artifacts
    are made for."""

    ladder: Ladder
    device: DeviceInfo
    environment: Mapping[str, str]
    arches: tuple[str, ...]


def ground(backend: Backend, ladder: Ladder, asked: Sequence[str]) -> Ground:
    """The device itself where one of an architecture asked for is here, else a stand-in for the first of them.

    asked: architectures; none: whichever there are. `ContractError` for one that the ladder does not know.
    """
    for arch in asked:
        if arch not in ladder.arches:
            raise ContractError("arch", f"one of {', '.join(ladder.arches)}", repr(arch))
    arches = tuple(dict.fromkeys(asked)) or ladder.arches
    for device in backend.devices():
        if device.numerics == "device" and (device.arch in arches or not asked):
            return Ground(ladder, device, {}, arches)
    return Ground(ladder, *stand_in(backend, ladder, arches[0]), arches)


def stand_in(backend: Backend, ladder: Ladder, arch: str) -> tuple[DeviceInfo, Mapping[str, str]]:
    """What stands in for an architecture, and the environment in which it is there; `ContractError` where none does."""
    environment = ladder.environment(arch)
    with changed(environment):
        found = [each for each in backend.devices() if each.numerics == ladder.numerics and each.arch == arch]
    if not found:
        raise ContractError("arch", f"a stand-in for {arch}, {ladder.numerics}", "none among the backend's devices")
    return found[0], environment


@contextlib.contextmanager
def changed(environment: Mapping[str, str]) -> Iterator[None]:
    """This process's environment, changed for a while."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def climb(
    backend: Backend,
    place: Ground,
    config: RuntimeConfig,
    results: Sequence[Result],
    *,
    jobs: int,
    seed: int,
    limit_s: float,
    variants: int | None = None,
    on_artifact: Callable[[Artifact, int], None] = lambda artifact, count: None,
) -> Climbed:
    """Everything above the numbers. config: chooses the device. variants: at most so many launches of each kernel are
    made artifacts of; None: all. on_artifact: told of each, and of how many there will be."""
    ladder = place.ladder
    launches = launches_of(results)
    chosen = sample(ladder, launches, variants)
    wanted = [(launches[index].record, arch) for index in chosen for arch in place.arches]
    made = ladder.make(wanted, jobs, lambda artifact: on_artifact(artifact, len(wanted)))
    controls = ask_launches(ladder, place.arches, jobs)
    if place.device.emulated:
        pool = Pool(config, 1, limit_s, place.environment)
        controls = ask_kernels(ladder, place.device.arch, pool, seed) + controls
    return Climbed(
        ladder.artifact,
        place.device.arch if place.device.emulated else "",
        place.arches,
        tuple(launches),
        tuple(zip([index for index in chosen for _ in place.arches], made, strict=True)),
        tuple(controls),
        tuple(bind(backend)),
        ladder.limits if place.device.emulated else (),
    )


def sample(ladder: Ladder, launches: Sequence[Launch], variants: int | None) -> list[int]:
    """The indices of at most so many launches of each kernel: spread over those there are, always the same ones."""
    if variants is None:
        return list(range(len(launches)))
    by_kernel: dict[str, list[int]] = {}
    for index, launch in enumerate(launches):
        by_kernel.setdefault(ladder.kernel_of(launch.record), []).append(index)
    found = []
    for mine in by_kernel.values():
        count = min(variants, len(mine))
        found += [mine[i * len(mine) // count] for i in range(count)]
    return sorted(found)
