"""A bare probe of the way of one durable task: how fast this machine could do it if nothing else had to be done.

Three processes, as in the benchmark: a client, a server, a worker; one stream each, with batches on it; an event log in
SQLite (synchronous=FULL) with packed rows over as many shards as an onexflow store has; the fewest events that tell the
story; and a commit before every acknowledgement, task and result. No definitions, no retries, no timers, no recovery, no
tokens, no credits, no queries. `scripts/bench` runs it in turns with the real thing and prints the ratios.
"""
