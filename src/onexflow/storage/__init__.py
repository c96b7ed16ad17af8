"""Adapters of `ports.event_store`: `memory`, the contract in its plainest form, `sqlite`, one file for one orchestrator,
and `postgres`, for many. One conformance suite runs on all.
"""
