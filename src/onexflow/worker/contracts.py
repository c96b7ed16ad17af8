"""Between payloads and a handler's values: contracts by attribute and item, typed ones by annotation, results back."""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from onexflow.codec.payload import convert, to_contract
from onexflow.core.errors import Coded, InvalidConfiguration
from onexflow.core.payload import JSON, Payload, PayloadCodec
from onexflow.worker.errors import ContractError
from onexflow.worker.handlers import Function, Handler

if TYPE_CHECKING:
    from pydantic import ValidationError

#: Faults of an input that one failure names.
_FAULTS: Final = 5
#: The largest result that goes inline.
PAYLOAD_LIMIT: Final = 2 * 1024 * 1024

Loader = Callable[[Payload], Any]
Dumper = Callable[[Any], Payload]


def loader_for(handler: Handler, codec: PayloadCodec) -> Loader:
    """How the handler's input is read: by its annotation, or as a contract with attribute and item access.

    Raises InvalidConfiguration when the annotation cannot be resolved. The loader raises ContractError, naming the field.
    """
    wanted = _annotation(handler)
    if _has_models(wanted):
        return _model_loader(handler, wanted, codec)
    decode = codec.decode

    def load(payload: Payload) -> Any:
        try:
            return to_contract(decode(payload)) if wanted is None else convert(payload, wanted)
        except (Coded, ValueError, TypeError) as error:
            raise ContractError(f"the input does not fit {handler.role} {handler.name!r}: {error}") from error

    return load


def _has_models(annotation: Any) -> bool:
    """Is there a pydantic model in the annotation? Then pydantic is there, and nobody else needs it."""
    if isinstance(annotation, type) and hasattr(annotation, "__pydantic_validator__"):
        return True
    return any(_has_models(part) for part in typing.get_args(annotation))


def _model_loader(handler: Handler, wanted: Any, codec: PayloadCodec) -> Loader:
    from pydantic import TypeAdapter, ValidationError

    adapter: TypeAdapter[Any] = TypeAdapter(wanted)

    def load(payload: Payload) -> Any:
        try:
            if payload.encoding != JSON:
                codec.decode(payload)  # says that it is not JSON
            return adapter.validate_json(payload.data)
        except ValidationError as error:
            raise ContractError(f"the input does not fit {handler.role} {handler.name!r}: {_faults(error)}") from error
        except Exception as error:  # whatever a validator of the user's raises, it will raise again
            raise ContractError(f"the input does not fit {handler.role} {handler.name!r}: {error!r}") from error

    return load


def _faults(error: ValidationError) -> str:
    """Each fault with its place, as `convert` names places: `$.lines[0].count`."""
    faults = error.errors(include_url=False, include_input=False)
    lines = []
    for fault in faults[:_FAULTS]:
        place = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in fault["loc"])
        lines.append(f"${place}: {fault['msg'][:1].lower()}{fault['msg'][1:]}")
    more = len(faults) - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more else "")


def dumper_for(handler: Handler, codec: PayloadCodec) -> Dumper:
    """How the handler's result becomes a payload. The dumper raises ContractError, naming limit and size."""
    encode = codec.encode

    def dump(value: Any) -> Payload:
        try:
            payload = value if type(value) is Payload else encode(value)
        except (Coded, ValueError, TypeError, RecursionError) as error:
            raise ContractError(f"the result of {handler.role} {handler.name!r} has no JSON form: {error}") from error
        if len(payload.data) > PAYLOAD_LIMIT:
            raise ContractError(
                f"the result of {handler.role} {handler.name!r} has {len(payload.data):,} bytes; "
                f"the limit of a payload is {PAYLOAD_LIMIT:,}"
            )
        return payload

    return dump


def _annotation(handler: Handler) -> Any:
    """The type of the contract parameter; None when it has none, or one that says nothing."""
    function = handler.function
    if not inspect.isroutine(function):
        function = type(function).__call__
    parameters = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    annotation = parameters[0].annotation if parameters else inspect.Parameter.empty
    if isinstance(annotation, str):
        annotation = _resolve(annotation, parameters[0].name, function, handler)
    return None if annotation in (inspect.Parameter.empty, Any, object) else annotation


def _resolve(text: str, parameter: str, function: Function, handler: Handler) -> Any:
    inner: Any = inspect.unwrap(function)
    scope = dict(getattr(inner, "__globals__", {}))
    if isinstance(inner, types.FunctionType):
        scope.update(inspect.getclosurevars(inner).nonlocals)
    # A function of its own, so that `typing` resolves the one annotation that is needed and no other.
    probe = types.SimpleNamespace(__annotations__={parameter: text})
    try:
        return typing.get_type_hints(probe, globalns=scope, include_extras=True)[parameter]
    except Exception as error:
        raise InvalidConfiguration(
            f"the annotation {text!r} of {handler.place} cannot be resolved ({error}): "
            "define the type at module level, where the handler's module can see it",
            {"role": handler.role, "handler": handler.name},
        ) from error
