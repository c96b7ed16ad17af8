"""From module names to the handlers that a worker process serves."""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Sequence

from onexflow.core.errors import Coded, InvalidConfiguration, ModuleNotImportable
from onexflow.worker import Worker


def load_workers(modules: Sequence[str], name: str) -> Worker:
    """One Worker with all handlers of `modules` (`package.module` or `package.module:attribute`).

    Raises ModuleNotImportable, with the module's own error, when a module cannot be imported or holds no Worker;
    InvalidConfiguration when two of them serve the same name.
    """
    found = [worker for module in modules for worker in _workers_of(module)]
    if len(found) == 1:
        return found[0]
    merged = Worker(name)
    for worker in found:
        for handler in worker.handlers:
            if handler.node is not None:
                merged.add_node(handler.node, name=handler.name, idempotent=handler.idempotent)
            elif handler.role == "effect":
                merged.effect(handler.name, idempotent=handler.idempotent)(handler.function)
            else:
                getattr(merged, handler.role)(handler.name)(handler.function)
    return merged


def _workers_of(place: str) -> list[Worker]:
    name, _, attribute = place.partition(":")
    try:
        module = importlib.import_module(name)
    except Coded:
        raise  # the module's own registrations are wrong: that error says it better
    except ModuleNotFoundError as error:
        facts = {"module": name}
        if error.name is not None and not f"{name}.".startswith(f"{error.name}."):
            facts["hint"] = f"{name} itself was found: what it imports is missing. Install it, or set PYTHONPATH."
        raise ModuleNotImportable(f"cannot import {name}: there is no module {error.name!r}", facts) from error
    except Exception as error:
        where = _place_of(error)
        message = f"cannot import {name}: {type(error).__name__}: {error} ({where})"
        hint = f"{name} was found, and failed while it was imported: mend it there."
        raise ModuleNotImportable(message, {"module": name, "where": where, "hint": hint}) from error
    if attribute:
        worker = getattr(module, attribute, None)
        if not isinstance(worker, Worker):
            known = sorted(key for key, value in vars(module).items() if isinstance(value, Worker))
            hint = f"It has: {', '.join(known)}." if known else "Make one: worker = onexflow.Worker('name')."
            raise ModuleNotImportable(f"{name} has no Worker named {attribute!r}", {"module": name, "hint": hint})
        return [worker]
    workers = list({id(value): value for value in vars(module).values() if isinstance(value, Worker)}.values())
    if not workers:
        raise ModuleNotImportable(
            f"{name} holds no Worker", {"module": name, "hint": "Make one: worker = onexflow.Worker('name')."}
        )
    return workers


def _place_of(error: Exception) -> str:
    """Where a module failed: the line that raised, or that cannot be read."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{error.filename}:{error.lineno}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{last.filename}:{last.lineno}"


def check_serves(worker: Worker, roles: Sequence[str]) -> None:
    """Raises InvalidConfiguration when the worker would have nothing to do."""
    served = [handler for handler in worker.handlers if not roles or handler.role in roles]
    if not served:
        wanted = f" of role {', '.join(roles)}" if roles else ""
        raise InvalidConfiguration(f"the modules have no handler{wanted}", {"setting": "modules"})
