"""Public test kit: the real engine and workers over memory ports, in virtual time, with faults on demand."""

from __future__ import annotations

from onexflow.testing.clock import SeededIds, VirtualClock, VirtualTimeLoop, run_virtual, virtual_time
from onexflow.testing.cluster import Cluster, ClusterWorker
from onexflow.testing.faults.store import Fault, FaultyStore
from onexflow.testing.links import InProcessStream

__all__ = [
    "Cluster",
    "ClusterWorker",
    "Fault",
    "FaultyStore",
    "InProcessStream",
    "SeededIds",
    "VirtualClock",
    "VirtualTimeLoop",
    "run_virtual",
    "virtual_time",
]
