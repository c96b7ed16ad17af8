"""`scripts/bench`: how fast the shipped binaries are, seen from one client process. See docs/performance.md."""
