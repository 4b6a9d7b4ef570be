"""From a configuration to an opened session: which backend, which device, which provider, and why."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from opsocket.operators import Session
from opsocket.runtime.config import Origin, RuntimeConfig, load_config
from opsocket.runtime.placement import Placed, Ran, Recorder, place
from opsocket.runtime.select import PassedOver, Selection, open_session, select

__all__ = [
    "Origin",
    "PassedOver",
    "Placed",
    "Ran",
    "Recorder",
    "RuntimeConfig",
    "Selection",
    "load_config",
    "open",
    "open_session",
    "place",
    "select",
]


def open(
    backend: str | None = None,
    *,
    config: str | os.PathLike[str] | RuntimeConfig | None = None,
    operators: Mapping[str, str] | None = None,
    threads: int | None = None,
    checked: Literal["shapes", "deep"] | None = None,
) -> Session:
    """A session on a device: "cpu", "cuda:1", "auto", or None for what the configuration says (default "auto").

    config: a configuration, or the path of its file; None: looked for as `opsocket.runtime.config` says. operators:
    operator -> the only provider that may serve it. threads: host threads. checked: see `SessionOptions`.
    Raises `ContractError` for a value that can't be, `FormatError` for a file that can't be read, and `PluginError`
    with stage, cause and hint for a backend that can't be had.
    """
    values = {"backend": backend, "operators": operators, "threads": threads, "checked": checked}
    arguments = {key: value for key, value in values.items() if value is not None}
    if not isinstance(config, RuntimeConfig):
        return open_session(load_config(config, arguments=arguments))
    return open_session(config.override("argument", arguments))
