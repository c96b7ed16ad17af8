"""The shell around the core: it owns shards, decides commands, writes events, and hands out work.

`kernel` decides and records (the one place that calls `core.decide`), `consequences` is what follows in the other parts,
`claims` has the shards that are owned here, `shard` what one owner has of its shard,
`lane` commits what all shards decided in one append at a time and releases what waited for it. `attempts` and
`dispatcher` bring work to workers, `sessions` is the worker streams' end, `suspects` sees to workers that may be dead,
`timers`, `housekeeping` and `recovery` are what time and restarts ask for, `queries` and `views` what people see.
`orchestrator` puts them together behind `ports.client_link.OrchestratorService`; `protocols` has the specification's
objects over the same port.

Everything runs on one event loop, the store's work aside. No gRPC, no SQL: see `ports`.
"""
