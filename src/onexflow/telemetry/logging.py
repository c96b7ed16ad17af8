"""Log lines: structlog over the standard library. An event name and key=value pairs; pretty on a terminal, else JSON.

A logger is named after its part (`structlog.get_logger("onexflow.registry")`), a line `noun.verb` in the past tense
(`log.info("worker.connected", worker=…)`); a test reads them all. INFO is for what happens to processes and streams, an
attempt is DEBUG, and a run has no line: its history says more. Lines of other libraries that use `logging` come out in
the same form. A line written inside a span carries its trace_id and span_id.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, Final, Literal, TextIO

import structlog
from opentelemetry import trace
from structlog.typing import EventDict, Processor, WrappedLogger

Format = Literal["auto", "pretty", "json"]

_LEVELS: Final = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
#: What these libraries say at INFO is of no use to who runs a cluster.
_QUIET: Final = ("asyncio", "grpc", "opentelemetry")


def configure(level: str = "info", form: Format = "auto", stream: TextIO | None = None, **fields: Any) -> None:
    """Write log lines to `stream` (stderr) from now on; `fields` are in every line. May be called again."""
    target = stream if stream is not None else sys.stderr
    pretty = form == "pretty" or (form == "auto" and target.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        add_trace,
    ]
    render: list[Processor] = (
        [structlog.dev.ConsoleRenderer(colors=_colours(target))]
        if pretty
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    structlog.contextvars.bind_contextvars(**fields)
    handler = logging.StreamHandler(target)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(_LEVELS[level])
    for name in _QUIET:
        logging.getLogger(name).setLevel(max(_LEVELS[level], logging.WARNING))


def add_trace(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Put the current span's ids into the line."""
    context = trace.get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def _colours(stream: TextIO) -> bool:
    """https://no-color.org and its counterpart."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        return False
    return bool(os.environ.get("FORCE_COLOR") or os.environ.get("CLICOLOR_FORCE")) or stream.isatty()
