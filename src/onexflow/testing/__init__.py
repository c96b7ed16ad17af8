"""Public test kit: the real engine and workers over memory ports, in virtual time, with faults on demand (`Cluster`) or by
a seed (`simulate`)."""

from __future__ import annotations

from onexflow.testing.clock import SeededIds, VirtualClock, VirtualTimeLoop, run_virtual, virtual_time
from onexflow.testing.cluster import Cluster, ClusterWorker
from onexflow.testing.faults.store import Fault, FaultyStore
from onexflow.testing.links import InProcessStream
from onexflow.testing.simulation import BrokenPromise, simulate

__all__ = [
    "BrokenPromise",
    "Cluster",
    "ClusterWorker",
    "Fault",
    "FaultyStore",
    "InProcessStream",
    "SeededIds",
    "VirtualClock",
    "VirtualTimeLoop",
    "run_virtual",
    "simulate",
    "virtual_time",
]
