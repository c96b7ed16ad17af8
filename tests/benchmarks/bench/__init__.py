"""`scripts/bench`: how fast the shipped binaries are, seen from one client process. See docs/performance.md."""

import os

#: Our clients run on uvloop and start processes: docs/decisions/0014. It counts when gRPC is imported.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
