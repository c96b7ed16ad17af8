"""The driver's errors as ours: none of them crosses the port."""

from __future__ import annotations

from typing import Final

import asyncpg

from onexflow.core.errors import Coded, InternalError, StoreFull, StoreUnavailable, StoreUnusable

#: What the driver raises, and what sockets raise under it.
DriverError: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, EOFError)

#: The server is there and will take connections soon, or another one will.
_SOON: Final = (
    asyncpg.CannotConnectNowError,
    asyncpg.TooManyConnectionsError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TargetServerAttributeNotMatched,
    asyncpg.InternalClientError,
    OSError,  # TimeoutError and ConnectionError with it
    EOFError,
)
_GONE: Final = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError)
_OURS: Final = (
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.DataError,
    asyncpg.CardinalityViolationError,
    asyncpg.ProgramLimitExceededError,
    asyncpg.InterfaceError,
    ValueError,
)


def is_passing(error: BaseException) -> bool:
    """Whether connecting again may help."""
    if isinstance(error, asyncpg.QueryCanceledError):
        return False
    return isinstance(error, _SOON)


def is_lost(error: BaseException) -> bool:
    """Whether the connection can no longer be used: what was asked may have happened or not."""
    return isinstance(error, (asyncpg.ReadOnlySQLTransactionError, asyncpg.InterfaceError)) or is_passing(error)


def translate(error: BaseException, shown: str) -> Coded:
    """The error to raise for a failed statement; `context["fatal"]` says that the process must end."""
    context = {"store": shown, "sqlstate": getattr(error, "sqlstate", None) or type(error).__name__}
    if isinstance(error, asyncpg.DiskFullError):
        return StoreFull(f"No space left for the store {shown}: nothing was stored.", context)
    if isinstance(error, _GONE):
        message = f"The tables of the store {shown} are gone or changed: {error}."
        return StoreUnavailable(message, {**context, "fatal": True})
    if isinstance(error, asyncpg.QueryCanceledError):
        return StoreUnavailable(f"The store {shown} took too long and was interrupted.", context)
    if isinstance(error, _OURS) and not (isinstance(error, asyncpg.InterfaceError) and _is_closed(error)):
        return InternalError(f"The store was asked for what cannot be: {error}.", context)
    return StoreUnavailable(f"The store {shown} did not confirm: {_words(error)}", context)


def unusable(error: BaseException, shown: str) -> Coded:
    """What to say when the store cannot be opened."""
    if is_passing(error) and not isinstance(error, asyncpg.InvalidAuthorizationSpecificationError):
        return StoreUnavailable(f"The store {shown} cannot be reached: {_words(error)}", {"store": shown})
    return StoreUnusable(f"The store {shown} cannot be opened: {_words(error)}", {"store": shown})


def _is_closed(error: asyncpg.InterfaceError) -> bool:
    """The driver has one class for its wrong use and for a connection that is closed."""
    return not isinstance(error, asyncpg.DataError) and "closed" in str(error)


def _words(error: BaseException) -> str:
    text = str(error) or type(error).__name__
    return text if text.endswith(".") else f"{text}."
