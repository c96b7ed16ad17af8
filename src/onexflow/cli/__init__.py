"""The command line `onexflow`: one file a noun. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from onexflow.cli.main import main

__all__ = ["main"]
