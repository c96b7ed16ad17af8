"""The specification's five exceptions. Every error of onexflow is one of them (`onexflow.core.errors`)."""

from __future__ import annotations

import copy
from typing import Any


class SPIError(Exception):
    """Base of every error of the protocols. `context` is a copy of its own: changing it changes nothing else."""

    def __init__(self, message: str = "", context: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.context: dict[str, Any] = copy.deepcopy(context) if context else {}


class ProtocolHandlerError(SPIError):
    """A handler, a node or an event processor failed."""


class HandlerInitializationError(ProtocolHandlerError):
    """Something that is needed could not be reached or set up: a store, a registry, a port, a module."""


class RegistryError(SPIError):
    """A name is not known: workflow type, run, task, node, handler."""


class InvalidProtocolStateError(SPIError):
    """The call does not fit the state. `context` carries `current_state` and `required_state`."""
