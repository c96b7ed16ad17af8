"""Chaos with real processes: what `kill -9`, cut streams and a lost etcd do to running work. `scripts/chaos` prints tables."""
