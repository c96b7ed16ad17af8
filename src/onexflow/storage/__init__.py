"""Adapters of `ports.event_store`: `memory`, the contract in its plainest form, and `sqlite`, one file for one
orchestrator. One conformance suite runs on both.
"""
