"""`scripts/bench`: how fast the shipped binaries are, seen from one client process. See docs/performance.md."""

from onexflow.app.tuning import leave_forks_alone

leave_forks_alone()  # our clients run on uvloop and start processes: docs/decisions/0014
