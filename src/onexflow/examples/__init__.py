"""Workflows that are shipped, run by the demo and by the tests. Each module has `definition()` and `worker`.

`greet` is the smallest one, `order_processing` has effects on a real ledger, `flight_delays` maps over real data.
"""
