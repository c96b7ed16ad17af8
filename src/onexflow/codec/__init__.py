"""Stored form and wire form: `rows` and snapshots of the event log, `payload`s as JSON, `definitions` as JSON or YAML,
and `wire` for the messages of `onexflow.v1`. Pure: bytes and values, no I/O.
"""
