"""How backends come in: hook specifications, discovery, and isolation of what is broken."""

from opsocket.plugins.hooks import GROUP, hookimpl, hookspec

__all__ = ["GROUP", "hookimpl", "hookspec"]
