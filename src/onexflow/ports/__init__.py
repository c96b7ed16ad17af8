"""What the engine and the worker need of the world, as Protocols: a store, a registry, links, time and chance.

The docstrings are the contracts; `onexflow.testing.conformance` runs them against each adapter. What a test must cut,
delay or fail is a port. Messages and records are values of this package, never a vendor's.
"""
