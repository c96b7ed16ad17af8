"""`Worker`: the handlers that a worker process serves, collected by decorators. Runs nothing itself (`runtime.py` does).

    worker = Worker("shop")

    @worker.effect("charge", idempotent=True)
    async def charge(order, ctx): ...

    @worker.compute
    def price(order: Order) -> Price: ...

A handler takes `(contract)` or `(contract, ctx)`, is sync or async, and stays an ordinary function.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, TypeVar, cast, overload

import msgspec

from onexflow.core.errors import InvalidConfiguration, RoleNotSupported
from onexflow.ports.worker_link import ROLES, HandlerInfo, Role

Function = Callable[..., Any]
F = TypeVar("F", bound=Function)

_NODE_METHODS: dict[str, Role] = {
    "execute_effect": "effect",
    "execute_compute": "compute",
    "execute_reduction": "reducer",
    "execute_orchestration": "orchestrator",
}


class Handler(msgspec.Struct, frozen=True, kw_only=True):
    """One registered handler."""

    role: Role
    name: str
    function: Function
    is_async: bool
    takes_context: bool
    idempotent: bool
    node: Any = None  #: the class node that `function` is a method of

    @property
    def info(self) -> HandlerInfo:
        """What the orchestrator is told."""
        return HandlerInfo(self.role, self.name, self.idempotent)

    @property
    def place(self) -> str:
        """`module:qualname`, for messages and for the child process that imports it."""
        module = getattr(self.function, "__module__", "?")
        return f"{module}:{getattr(self.function, '__qualname__', repr(self.function))}"


class Worker:
    """A named collection of handlers: filled by decorators and `add_node`, served by the worker binary or a runtime."""

    def __init__(self, name: str = "worker") -> None:
        self.name = name
        self._handlers: dict[tuple[Role, str], Handler] = {}

    @overload
    def effect(self, name: F, /) -> F: ...

    @overload
    def effect(self, name: str | None = None, /, *, idempotent: bool = False) -> Callable[[F], F]: ...

    def effect(self, name: Any = None, /, *, idempotent: bool = False) -> Any:
        """Register an effect: it touches the world, and at most one authorised attempt runs at a time.

        `idempotent=True` is your promise that a second run with the same `ctx.idempotency_key` changes nothing. Then an
        attempt that was lost with its worker is run again; else it waits for its own late answer or for a person.
        """
        return self._decorator("effect", name, idempotent)

    @overload
    def compute(self, name: F, /) -> F: ...

    @overload
    def compute(self, name: str | None = None, /) -> Callable[[F], F]: ...

    def compute(self, name: Any = None, /) -> Any:
        """Register a compute: a pure function of its contract. Sync ones run in child processes, one a slot."""
        return self._decorator("compute", name, True)

    @overload
    def reducer(self, name: F, /) -> F: ...

    @overload
    def reducer(self, name: str | None = None, /) -> Callable[[F], F]: ...

    def reducer(self, name: Any = None, /) -> Any:
        """Register a reducer: a pure fold of many results. Sync ones run in threads."""
        return self._decorator("reducer", name, True)

    @overload
    def orchestrator(self, name: F, /) -> F: ...

    @overload
    def orchestrator(self, name: str | None = None, /) -> Callable[[F], F]: ...

    def orchestrator(self, name: Any = None, /) -> Any:
        """Register an orchestration: async code that calls nodes and workflows (`ctx.node`, `ctx.run`).

        When its worker is lost it is run again, elsewhere, and gets the recorded results of the calls that it has made.
        So all that decides which calls it makes must come from its contract and from their results.
        """
        return self._decorator("orchestrator", name, True)

    def add_node(self, node: Any, *, name: str | None = None, idempotent: bool = False) -> None:
        """Register an object that satisfies a node protocol of the specification, as it is.

        Its handler name is its `node_id`, or `name`. `initialize()` and `shutdown()`, where it has them, are called when
        the runtime starts and ends. One that has none of the specification's methods but an `execute` (as in the
        published package's `protocols.nodes`) is called by that.
        """
        role, method = _role_of(node)
        self._add(role, name or str(node.node_id), method, idempotent if role == "effect" else True, node)

    @property
    def handlers(self) -> tuple[Handler, ...]:
        """All handlers, in the order of their registration."""
        return tuple(self._handlers.values())

    def find(self, role: Role, name: str) -> Handler | None:
        """The handler of that role and name."""
        return self._handlers.get((role, name))

    def _decorator(self, role: Role, name: Any, idempotent: bool) -> Any:
        if name is None or isinstance(name, str):

            def register(function: F) -> F:
                self._add(role, name or _name_of(function), function, idempotent)
                return function

            return register
        self._add(role, _name_of(name), name, idempotent)
        return name

    def _add(self, role: Role, name: str, function: Function, idempotent: bool, node: Any = None) -> None:
        is_async = _is_async(role, name, function)
        if role == "orchestrator" and not is_async:
            raise RoleNotSupported(
                f"orchestrator {name!r} is not async: a thread cannot wait for the calls of thousands of orchestrations",
                {"role": role, "handler": name},
            )
        if (known := self._handlers.get((role, name))) is not None:
            raise InvalidConfiguration(
                f"worker {self.name!r} already has {role} {name!r} ({known.place}); a name is served by one handler",
                {"worker": self.name, "role": role, "handler": name},
            )
        self._handlers[role, name] = Handler(
            role=role,
            name=name,
            function=function,
            is_async=is_async,
            takes_context=_takes_context(role, name, function),
            idempotent=idempotent,
            node=node,
        )


def _name_of(function: Any) -> str:
    name = getattr(function, "__name__", "")
    if not callable(function) or not name or name == "<lambda>":
        raise InvalidConfiguration(f"{function!r} has no name to serve it by: give one, as in @worker.effect('charge')")
    return str(name)


def _is_async(role: Role, name: str, function: Function) -> bool:
    inner = function if inspect.isroutine(function) else type(function).__call__
    if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner):
        raise InvalidConfiguration(f"{role} {name!r} is a generator: a handler returns its result, it does not yield")
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(inner)


def _takes_context(role: Role, name: str, function: Function) -> bool:
    """Whether the handler takes `ctx`. Raises InvalidConfiguration when it is neither (contract) nor (contract, ctx)."""
    parameters = list(inspect.signature(function).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    required = [p.name for p in positional if p.default is p.empty]
    odd = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
    if not positional or len(required) > 2 or odd:
        shown = f"({', '.join(str(p) for p in parameters)})"
        raise InvalidConfiguration(
            f"{role} {name!r} has the signature {shown}: a handler takes (contract) or (contract, ctx)",
            {"role": role, "handler": name, "signature": shown},
        )
    return len(required) == 2 or (len(positional) > 1 and positional[1].name in ("ctx", "context"))


def _role_of(node: Any) -> tuple[Role, Function]:
    """The role of a class node and its method. `node_type` decides among several; it is compared without case."""
    for attribute in ("node_id", "node_type"):
        if not isinstance(getattr(node, attribute, None), str):
            raise InvalidConfiguration(f"{node!r} is no node: its `{attribute}` is not a string")
    said = node.node_type.partition(":")[0].strip().lower()
    found = {role: getattr(node, m) for m, role in _NODE_METHODS.items() if callable(getattr(node, m, None))}
    if not found and said in ROLES and callable(getattr(node, "execute", None)):
        return cast(Role, said), cast(Function, node.execute)
    if not found:
        methods = ", ".join(_NODE_METHODS)
        raise InvalidConfiguration(f"{node.node_id!r} is no node: it has none of the methods {methods}")
    role = said if said in found else next(iter(found)) if len(found) == 1 else ""
    if not role:
        raise InvalidConfiguration(
            f"{node.node_id!r} has node_type {node.node_type!r}, but methods of {', '.join(found)}"
        )
    return cast(Role, role), cast(Function, found[cast(Role, role)])
