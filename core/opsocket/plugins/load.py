"""The loading loop: one plugin at a time, each in its own plugin manager, so that none can disturb another.

An entry point is code: whoever can install a distribution here can run it. `plugins.allow` and `OPSOCKET_PLUGINS` say
whose code is run.
"""

from __future__ import annotations

import contextlib
import difflib
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import pluggy

from opsocket.operators import Backend
from opsocket.plugins import check
from opsocket.plugins.discovery import Discovered, allowed_by_environment, discover
from opsocket.plugins.hooks import GROUP, Hooks
from opsocket.plugins.stages import Fell, reached_before, stage
from opsocket.plugins.status import BackendStatus, Fault, PluginStatus, Stage

_HOOK = Hooks.opsocket_backends.__name__
_lock = threading.RLock()
_surveyed: dict[tuple[str, str, str], PluginStatus] = {}
_claims: dict[int, Fault | None] = {}
"""By id of a backend that `_surveyed` keeps alive: a stranger's object need not be hashable."""


def survey(allow: Sequence[str] | None = None) -> tuple[PluginStatus, ...]:
    """Every installed plugin and how far it came, its backends' claims not yet checked: imports no framework.

    Each plugin is imported at most once per process, and never raises here. allow: names of entry points or
    distributions that may be imported; None: what `OPSOCKET_PLUGINS` says, else all.
    """
    return _refuse_duplicates([_survey_once(found) for found in _discover(allow)])


def plugins(allow: Sequence[str] | None = None) -> tuple[PluginStatus, ...]:
    """`survey`, and each backend that has a device proven: a yes names the kernel's class, which imports frameworks."""
    return tuple(replace(status, backends=tuple(map(proven, status.backends))) for status in survey(allow))


def proven(status: BackendStatus) -> BackendStatus:
    """The same backend after its answers to the canonical requests, once per process, on its first device."""
    backend = status.backend
    if backend is None or not status.devices:
        return status
    with _lock:
        if id(backend) not in _claims:
            with contextlib.redirect_stdout(sys.stderr):
                _claims[id(backend)] = _fault_of(lambda: check.check_claims(backend, status.devices[0]))
        fault = _claims[id(backend)]
    return status if fault is None else _fallen(status, fault)


def find_backend(name: str, allow: Sequence[str] | None = None) -> BackendStatus | None:
    """The backend called `name`, proven, or None where no plugin that loads brings it.

    A plugin whose entry point has that very name is asked first, and the others only where it does not serve: a slow or
    broken plugin costs nothing to those who did not ask for it.
    """
    namesakes = [_survey_once(found) for found in _discover(allow) if found.entry_point.name == name]
    best = _best(name, _refuse_duplicates(namesakes))
    if best is None or not best.is_available:
        best = _best(name, survey(allow))
    return None if best is None else proven(best)


def _best(name: str, statuses: Sequence[PluginStatus]) -> BackendStatus | None:
    backends = [b for status in statuses for b in status.backends if b.name == name]
    return min(backends, key=lambda b: (not b.is_available, _precedence(b)), default=None)


def reload(allow: Sequence[str] | None = None) -> tuple[PluginStatus, ...]:
    """Forget what was found and survey again. Modules that are already imported are not run a second time."""
    with _lock:
        _surveyed.clear()
        _claims.clear()
    return survey(allow)


def _discover(allow: Sequence[str] | None) -> tuple[Discovered, ...]:
    return discover(allowed_by_environment() if allow is None else allow)


def _survey_once(found: Discovered) -> PluginStatus:
    if found.fault is not None:
        return load(found)
    with _lock:
        if found.key not in _surveyed:
            # What a plugin prints must not end up in the output of the program that loads it.
            with contextlib.redirect_stdout(sys.stderr):
                _surveyed[found.key] = load(found)
        return _surveyed[found.key]


def load(found: Discovered, entering: Callable[[Stage], None] = lambda _: None) -> PluginStatus:
    """Take one plugin through the stages, its backends' claims left out. entering: told of each before it starts."""
    target = found.entry_point.value
    status = PluginStatus(found.entry_point.name, target, found.distribution, found.version, "discovered")
    entering("compatible")
    if found.fault is not None:
        return replace(status, fault=found.fault, reached=reached_before(found.fault))
    entering("imported")
    start = time.perf_counter()
    try:
        with stage("imported", f"importing {target}", "`opsocket backends -v` shows the traceback"):
            plugin = found.entry_point.load()
        seconds = time.perf_counter() - start
        entering("validated")
        backends = _call_hook(plugin, target)
    except Fell as fell:
        return replace(status, fault=fell.fault, reached=reached_before(fell.fault))
    loaded = tuple(_load_backend(backend, found, entering) for backend in backends)
    return replace(status, reached="validated", import_seconds=seconds, backends=loaded)


def _call_hook(plugin: object, target: str) -> Sequence[Backend]:
    with stage("validated", f"the hooks of {target}"):
        manager = pluggy.PluginManager(GROUP)
        manager.add_hookspecs(Hooks)
        manager.register(plugin, name=target)
    for name, caller in vars(manager.hook).items():
        if not caller.has_spec() and not all(hook.optionalhook for hook in caller.get_hookimpls()):
            raise Fell(Fault("validated", f"{target}: no hook is called {name!r}{_nearest(name)}"))
    with stage("validated", f"{_HOOK}() raised"):
        results = manager.hook.opsocket_backends()
    if not results:
        hint = "decorate the function with @opsocket.plugins.hookimpl"
        raise Fell(Fault("validated", f"{target} has no hook {_HOOK}, or it returned None", hint))
    return check.check_backends(results[0])


def _nearest(name: str) -> str:
    return f"; was {_HOOK!r} meant?" if difflib.get_close_matches(name, [_HOOK], 1, 0.5) else ""


def _load_backend(backend: Backend, found: Discovered, entering: Callable[[Stage], None]) -> BackendStatus:
    status = BackendStatus(
        type(backend).__qualname__, "", "", "", found.entry_point.name, found.distribution, reached="discovered"
    )
    try:
        with stage("validated", f"checking {status.name} raised"):
            info = check.check_info(backend)
            status = replace(status, name=info.name, version=info.version, vendor=info.vendor, api=info.api)
            check.check_interface(info)
            check.check_providers(backend)
        entering("available")
        with stage("available", "notes() raised"):
            status = replace(status, notes=tuple(str(note) for note in backend.notes()))
        devices = check.check_devices(backend)
    except Fell as fell:
        absent = fell.fault.stage == "available"
        return replace(_fallen(status, fell.fault), backend=backend if absent else None)
    return replace(status, reached="available", devices=devices, backend=backend)


def _fallen(status: BackendStatus, fault: Fault) -> BackendStatus:
    return replace(status, fault=fault, reached=reached_before(fault), devices=(), backend=None)


def _fault_of(work: Callable[[], None]) -> Fault | None:
    try:
        work()
    except Fell as fell:
        return fell.fault
    return None


def _precedence(status: BackendStatus) -> tuple[bool, bool, str, str]:
    """Order among backends of one name: those that are validated; entry points of that very name; by distribution."""
    return status.backend is None, status.plugin != status.name, status.distribution, status.plugin


def _refuse_duplicates(statuses: Sequence[PluginStatus]) -> tuple[PluginStatus, ...]:
    """Of several validated backends with one name only the first by `_precedence` stays."""
    first: dict[str, BackendStatus] = {}
    for status in sorted((b for s in statuses for b in s.backends if b.backend is not None), key=_precedence):
        first.setdefault(status.name, status)

    def judged(status: BackendStatus) -> BackendStatus:
        winner = first.get(status.name, status)
        if status.backend is None or status.backend is winner.backend:
            return status
        cause = (
            f"backend {status.name!r} is already provided by plugin {winner.plugin!r} of {winner.distribution}; "
            f"plugin {status.plugin!r} of {status.distribution} is refused"
        )
        hint = "uninstall one of the two, or name the one you want in plugins.allow"
        return _fallen(status, Fault("validated", cause, hint))

    return tuple(replace(status, backends=tuple(map(judged, status.backends))) for status in statuses)
