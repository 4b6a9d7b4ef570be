"""The configuration file: which one is read, and its content as settings with their positions."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opsocket.operators import FormatError
from opsocket.runtime.config import Option, Origin, Setting, options
from opsocket.runtime.kinds import Table, Wrong, unknown_key
from opsocket.runtime.yaml_file import Document, Place, read_yaml

CONFIG_VARIABLE = "OPSOCKET_CONFIG"
LOCAL_NAME = "opsocket.yaml"


def user_file(environment: Mapping[str, str]) -> Path:
    """`opsocket/config.yaml` in the user's configuration folder."""
    folder = environment.get("XDG_CONFIG_HOME") or environment.get("APPDATA")
    return (Path(folder) if folder else Path.home() / ".config") / "opsocket" / "config.yaml"


def cache_folder() -> Path:
    """`opsocket` in the user's cache folder: what can be made again."""
    folder = os.environ.get("XDG_CACHE_HOME")
    return (Path(folder) if folder else Path.home() / ".cache") / "opsocket"


def find_file(path: str | os.PathLike[str] | None, environment: Mapping[str, str]) -> Path | None:
    """The file to read, None where there is none. One that is named, by `path` or by `OPSOCKET_CONFIG`, must exist."""
    named = path or environment.get(CONFIG_VARIABLE)
    if named:
        file = Path(named)
        if not file.is_file():
            by = "" if path else f" (named by {CONFIG_VARIABLE})"
            raise FormatError(file, "file", f"{'is not a file' if file.exists() else 'does not exist'}{by}")
        return file
    return next((file for file in (Path(LOCAL_NAME), user_file(environment)) if file.is_file()), None)


def from_file(path: Path) -> dict[str, Setting]:
    """A file's settings; `FormatError` names line, column, and the unknown key with the one meant, or the value."""
    document = read_yaml(path)
    if not isinstance(document.data, dict):
        raise document.error((), f"wanted a mapping of options, got {_shown(document.data)}")
    layer: dict[str, Setting] = {}
    _section(document, document.data, (), layer)
    return layer


def _section(document: Document, data: dict[str, Any], place: Place, layer: dict[str, Setting]) -> None:
    prefix = "".join(f"{part}." for part in place)
    below = {o.key.removeprefix(prefix): o for o in options() if o.key.startswith(prefix)}
    names = {name.partition(".")[0] for name in below}
    for name, value in data.items():
        here = (*place, name)
        if name not in names:
            raise document.error(here, unknown_key(name, names, _dotted(place)), at_key=True)
        if name in below:
            layer |= _setting(document, below[name], value, here)
        elif isinstance(value, dict):
            _section(document, value, here, layer)
        else:
            raise document.error(here, f"{_dotted(here)}: wanted a mapping, got {_shown(value)}")


def _setting(document: Document, option: Option, value: Any, place: Place) -> dict[str, Setting]:
    try:
        checked = option.kind.check(value)
    except Wrong as wrong:
        at = (*place, *wrong.at)
        problem = f"{_dotted(at)}: wanted {wrong.want}, got {_shown(wrong.got)}"
        if wrong.at_key and isinstance(option.kind, Table):
            problem = unknown_key(str(wrong.got), option.kind.keys, _dotted(place))
        raise document.error(at, problem, at_key=wrong.at_key) from None
    if isinstance(option.kind, Table):
        return {
            f"{option.key}.{k}": Setting(v, Origin("file", document.origin((*place, k)))) for k, v in checked.items()
        }
    return {option.key: Setting(checked, Origin("file", document.origin(place)))}


def _dotted(place: Place) -> str:
    return ".".join(map(str, place))


def _shown(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()} (YAML reads yes, no, on and off so too: write text in quotes)"
    if isinstance(value, dict | list):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
