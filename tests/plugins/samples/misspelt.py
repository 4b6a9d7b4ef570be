"""Its hook has a name that does not exist."""

from opsocket.plugins import hookimpl


@hookimpl
def opsocket_backend():
    return []
