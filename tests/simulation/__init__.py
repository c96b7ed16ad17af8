"""Workflows under seeded faults in virtual time (`onexflow.testing.simulation`)."""
