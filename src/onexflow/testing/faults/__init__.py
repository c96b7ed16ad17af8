"""Faults for tests: what networks, disks and processes do on their bad days."""
