"""Exit codes of the binaries and of the command line. Part of the public surface (docs/stability.md)."""

from __future__ import annotations

from typing import Final

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
UNAVAILABLE: Final = 4
RUN_FAILED: Final = 5
PORT_BUSY: Final = 10
ETCD_UNREACHABLE: Final = 11
STORE_LOCKED: Final = 12
BAD_DEFINITION: Final = 13
NOT_IMPORTABLE: Final = 14
WRONG_PYTHON: Final = 15
STORE_UNUSABLE: Final = 16
NATS_UNUSABLE: Final = 17
INTERRUPTED: Final = 130


def of(error: BaseException) -> int:
    """The exit code of an error: its own if it tells of a process that has ended, else that of the nearest class in the
    tree that has one."""
    from onexflow.core import errors
    from onexflow.spi.exceptions import RegistryError

    codes: dict[type[BaseException], int] = {
        errors.InvalidDefinition: BAD_DEFINITION,
        errors.InvalidArgument: USAGE,
        errors.InvalidConfiguration: USAGE,
        RegistryError: NOT_FOUND,
        errors.Unavailable: UNAVAILABLE,
        errors.DeadlineExceeded: UNAVAILABLE,
        errors.RunFailed: RUN_FAILED,
        errors.PortBusy: PORT_BUSY,
        errors.RegistryUnavailable: ETCD_UNREACHABLE,
        errors.StoreLocked: STORE_LOCKED,
        errors.ModuleNotImportable: NOT_IMPORTABLE,
        errors.UnsupportedPython: WRONG_PYTHON,
        errors.StoreUnusable: STORE_UNUSABLE,
        errors.NatsUnusable: NATS_UNUSABLE,
    }
    if isinstance(own := getattr(error, "exit_code", None), int):
        return own
    return next((codes[kind] for kind in type(error).__mro__ if kind in codes), FAILED)
