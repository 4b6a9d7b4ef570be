"""What a plugin implements: hook specifications, and the marker that says "this function is one".

A plugin is a module or an object named by an entry point of group `opsocket`:

    # pyproject.toml:  [project.entry-points.opsocket]
    #                  mychip = "opsocket_mychip.plugin"

    from opsocket.plugins import hookimpl

    @hookimpl
    def opsocket_backends():
        return [MyChip()]
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from opsocket.operators import Backend

GROUP = "opsocket"
"""The entry-point group of plugins, and the name of the pluggy project."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


class Hooks:
    """The hooks of interface version 1."""

    @staticmethod
    @hookspec
    def opsocket_backends() -> Sequence[Backend]:
        """The backends that this plugin brings. Cheap: constructs them and touches no device."""
        raise NotImplementedError
