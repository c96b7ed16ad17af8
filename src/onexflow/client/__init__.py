"""The typed, asynchronous client. `connect` is the way in.

It knows nothing of the engine: all it has is the wire API (`onexflow.v1`). Start reading at `client.client`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onexflow.client.client import Client, connect
    from onexflow.client.handle import RunHandle

__all__ = ["Client", "RunHandle", "connect"]


def __getattr__(name: str) -> Any:
    """Loaded when it is first used: who needs a module of this package alone does not pay for the client."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from onexflow.client import client, handle

    globals().update(Client=client.Client, connect=client.connect, RunHandle=handle.RunHandle)
    return globals()[name]
