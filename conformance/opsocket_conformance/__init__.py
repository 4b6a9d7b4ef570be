"""The conformance suite: one command that says whether a backend's operators are right, and why to believe it.

    opsocket conformance --backend cpu --profile decoder

`cases` says what is asked, `checks` how it is judged, `oracle` what the answer is (float64), `tolerance` how far a
correct answer may be from it, `runner` runs, `report` tells. See docs/conformance.md and docs/tolerance.md.

Importing this package imports neither NumPy nor a framework.
"""

from __future__ import annotations

from typing import Final

SUITE_VERSION: Final = "0.1"
"""Part of every case's seed: a new version draws new numbers."""
