"""Cases set aside by name, each with a reason and a date from which it counts again."""

from __future__ import annotations

import datetime
import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opsocket.operators import ContractError, FormatError


@dataclass(frozen=True)
class Exclusion:
    """case: an id, * for any text. expires: the first day on which the case counts again."""

    case: str
    reason: str
    expires: datetime.date

    def __str__(self) -> str:
        return f"{self.reason} (until {self.expires})"


def excluded(case_id: str, exclusions: Sequence[Exclusion], today: datetime.date | None = None) -> Exclusion | None:
    """The exclusion that holds for a case today, or None."""
    day = today or datetime.date.today()
    for exclusion in exclusions:
        # Ids are full of brackets, which mean something else to fnmatch.
        pattern = exclusion.case.replace("[", "\0").replace("\0", "[[]")
        if day < exclusion.expires and fnmatch.fnmatchcase(case_id, pattern):
            return exclusion
    return None


def load_exclusions(path: str | Path) -> tuple[Exclusion, ...]:
    """Read a YAML list of {case, reason, expires: YYYY-MM-DD}; `FormatError` names the entry that is wrong."""
    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise FormatError(path, "file", str(error)) from None
    if not isinstance(data, list):
        raise FormatError(path, "top level", "wanted a list of {case, reason, expires}")
    found = []
    for number, entry in enumerate(data):
        try:
            found.append(_exclusion(entry))
        except ContractError as error:
            raise FormatError(path, f"entry {number}", str(error)) from None
    return tuple(found)


def _exclusion(entry: object) -> Exclusion:
    if not isinstance(entry, dict) or set(entry) != {"case", "reason", "expires"}:
        raise ContractError("entry", "exactly the keys case, reason and expires", entry)
    case, reason, expires = entry["case"], entry["reason"], entry["expires"]
    if not isinstance(case, str) or not case.strip():
        raise ContractError("case", "a case id, * for any text", case)
    if not isinstance(reason, str) or not reason.strip():
        raise ContractError("reason", "a sentence", reason)
    if not isinstance(expires, datetime.date):
        raise ContractError("expires", "a date, YYYY-MM-DD", expires)
    return Exclusion(case, reason, expires)
