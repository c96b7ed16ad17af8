"""Does the cost of a task grow with what the system holds? `scripts/bench --growth`; `curves` says what is measured."""
