"""The composition roots: programs that put settings, adapters and the engine or the worker together.

`orchestrator` and `worker` are the entry points, small enough to load on a wrong Python (`launch`); what they run is in
`serve_orchestrator` and `serve_worker`. `dev` and `supervisor` start a whole cluster of them on one machine. Nothing but
`cli`, `testing` and `examples` imports from here.
"""
