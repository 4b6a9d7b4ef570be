"""From a run's results to the rungs above it: artifacts of what was launched, controls, bindings."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final

from opsocket.operators import Artifact, Backend, ContractError, DeviceInfo, Ladder
from opsocket_conformance.case import Case
from opsocket_conformance.exclusions import Exclusion
from opsocket_conformance.isolation import Pool, run_isolated
from opsocket_conformance.ladder.bindings import bind
from opsocket_conformance.ladder.controls import ask_kernels, ask_launches
from opsocket_conformance.ladder.section import Climbed, Elsewhere, Launch, launches_of
from opsocket_conformance.verdicts import Result, Verdict

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig
    from opsocket_conformance.journal import Journal, Part


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

    asked: architectures; none: the device's own, or where there is none, the usual ones. `ContractError` for one that
    the ladder does not know. A device takes the calls that "schema" is about itself: for its own architecture nothing
    is held against a vendor's checks once more.
    """
    for arch in asked:
        if arch not in ladder.arches:
            raise ContractError("arch", f"one of {', '.join(ladder.arches)}", repr(arch))
    arches = tuple(dict.fromkeys(asked))
    for device in backend.devices():
        if device.numerics == "device" and (device.arch in arches or not asked):
            arches = arches or tuple(arch for arch in ladder.arches if arch == device.arch)
            if ladder.artifact == "schema":
                arches = tuple(arch for arch in arches if arch != device.arch)
            return Ground(ladder, device, {}, arches)
    arches = arches or ladder.usual or ladder.arches
    return Ground(ladder, *stand_in(backend, ladder, arches[0]), arches)


def stand_in(backend: Backend, ladder: Ladder, arch: str) -> tuple[DeviceInfo, Mapping[str, str]]:
    """What stands in for an architecture, and the environment in which it is there; `ContractError` where none does."""
    environment = ladder.environment(arch)
    with changed(environment):
        devices = backend.devices()
        absence = None if devices else backend.absence()
    found = [each for each in devices if each.numerics == ladder.numerics and each.arch == arch]
    if not found:
        got = "none among its devices" if absence is None else f"none: {absence.reason} ({absence.hint})"
        raise ContractError("arch", f"a stand-in for {arch}, {ladder.numerics}", got)
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


def elsewhere(
    backend: Backend,
    place: Ground,
    config: RuntimeConfig,
    cases: Sequence[Case],
    results: Sequence[Result],
    *,
    jobs: int,
    seed: int,
    limit_s: float,
    exclusions: Sequence[Exclusion] = (),
    on_result: Callable[[Result], None] = lambda result: None,
    journal: Journal | None = None,
) -> list[Elsewhere]:
    """The cases of a run for each other architecture: rehearsed, and run on a stand-in where they launch what was not
    launched for one before. A rehearsal that was denied is a result: nothing would have been computed."""
    found: list[Elsewhere] = []
    for arch in place.arches:
        if arch == place.device.arch:
            continue
        device, environment = stand_in(backend, place.ladder, arch)
        run = partial(
            run_isolated,
            config=config.override("argument", {"backend": str(device)}),
            jobs=jobs,
            seed=seed,
            limit_s=limit_s,
            exclusions=exclusions,
            on_result=on_result,
            environment=environment,
        )
        rehearsed = run(cases, record="rehearse")
        same = {a.case for a, b in zip(results, rehearsed, strict=True) if _is_same(a, b)}
        known = {result.case: result for result in rehearsed if result.verdict is Verdict.UNSUPPORTED}
        before = [result for other in found for result in other.results if result.case not in known]
        intended = {result.case: result for result in rehearsed}
        alike = {each.case: each for each in before if each.case not in same and _is_same(each, intended[each.case])}
        known |= alike
        rest = [case for case in cases if case.id not in same | set(known)]
        ran = run(rest, record="run", kept=part_of(journal, device))
        known |= {result.case: result for result in ran}
        ordered = [case.id for case in cases]
        found.append(
            Elsewhere(
                arch,
                tuple(name for name in ordered if name in same),
                tuple(known[name] for name in ordered if name not in same),
                tuple(name for name in ordered if name in alike),
            )
        )
    return found


def part_of(journal: Journal | None, device: DeviceInfo) -> Part | None:
    """The results of a device or a stand-in."""
    return None if journal is None else journal.part(f"{device.name} ({device.arch}), {device.numerics}")


def _is_same(ran: Result, rehearsed: Result) -> bool:
    """Whether a case launches there what it launched here. A rehearsal's verdict says only whether it was denied."""
    denied = ran.verdict is Verdict.UNSUPPORTED, rehearsed.verdict is Verdict.UNSUPPORTED
    return ran.trace == rehearsed.trace and denied[0] == denied[1]


def climb(
    backend: Backend,
    place: Ground,
    config: RuntimeConfig,
    results: Sequence[Result],
    others: Sequence[Elsewhere],
    *,
    jobs: int,
    seed: int,
    limit_s: float,
    variants: int | None = None,
    on_artifact: Callable[[Artifact, int], None] = lambda artifact, count: None,
) -> Climbed:
    """Everything above the numbers. config: chooses the device. others: what `elsewhere` found. variants: at most so
    many launches of each kernel are made artifacts of; None: all. on_artifact: told of each, and of how many there will
    be."""
    ladder = place.ladder
    launches = launches_of(results, others, place.arches, ladder.kind_of)
    chosen = [i for i in sample(ladder, launches, variants) if ladder.makes(launches[i].record)]
    wanted = [(i, arch) for i in chosen for arch in launches[i].arches]
    made = ladder.make(
        [(launches[index].record, arch) for index, arch in wanted],
        jobs,
        lambda artifact: on_artifact(artifact, len(wanted)),
    )
    controls = ask_launches(ladder, place.arches, jobs)
    if place.device.emulated:
        pool = Pool(config, 1, limit_s, place.environment)
        controls = ask_kernels(ladder, place.device.arch, pool, seed) + controls
    return Climbed(
        ladder.artifact,
        place.device.arch if place.device.emulated else "",
        tuple(others),
        place.arches,
        tuple(launches),
        tuple((index, artifact) for (index, _), artifact in zip(wanted, made, strict=True)),
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
