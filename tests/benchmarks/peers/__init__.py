"""`scripts/bench --peers`: the same workloads on other systems, each in a process and an environment of its own."""
