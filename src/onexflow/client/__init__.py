"""The typed, asynchronous client. `connect` is the way in.

It knows nothing of the engine: all it has is the wire API (`onexflow.v1`). Start reading at `client.client`.
"""

from __future__ import annotations

from onexflow.client.client import Client, connect
from onexflow.client.handle import RunHandle

__all__ = ["Client", "RunHandle", "connect"]
