"""Makes the reference pages in docs/ from the code. Run by scripts/gen-docs; `--check` fails when a page is stale."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path

from onexflow.config import OrchestratorSettings, Settings, WorkerSettings
from onexflow.config.sources import meanings, paths
from onexflow.core.errors import BY_CODE
from onexflow.core.explanations import EXPLANATIONS
from onexflow.telemetry import names

DOCS = Path(__file__).parents[2] / "docs"
NOTE = "<!-- Made by scripts/gen-docs from the code; edit that. -->\n"


def errors() -> str:
    """docs/errors.md: a section a code."""
    lines = [
        "# Errors",
        NOTE,
        (
            "Every error has a stable code, carries a `context` (a dictionary) and is one of the specification's five "
            "exceptions. It is the same class on both sides of a call. `onexflow explain CODE` prints a section of this page."
        ),
        "",
        "| code | class | try again? |",
        "|---|---|---|",
    ]
    lines += [
        f"| [{code}](#{code.lower()}) | {cls.__name__} | {'yes' if cls.retryable else 'no'} |"
        for code, cls in sorted(BY_CODE.items())
    ]
    for code, cls in sorted(BY_CODE.items()):
        bases = [
            base.__name__
            for base in cls.__mro__[1:]
            if base.__name__ not in ("Coded", "Exception", "BaseException", "object")
        ]
        meaning = (inspect.getdoc(cls) or "").splitlines()[0]
        text = EXPLANATIONS[code]
        lines += [
            "",
            f"## {code}",
            f"**{cls.__name__}** ({', '.join(bases)}): {meaning}",
            "",
            text.causes,
            "",
            f"*What to do*: {text.action}",
        ]
    return "\n".join(lines) + "\n"


def configuration() -> str:
    """docs/configuration.md: every setting of the binaries."""
    lines = [
        "# Configuration",
        NOTE,
        (
            "A value comes from, in rising order: the default, the TOML file (`--config FILE`), the environment, a flag. "
            "`--show-config` prints each with its origin. Unknown names are errors. In TOML the parts of a name are tables; "
            "in the environment it is `ONEXFLOW_` and the name in upper case with `__` between the parts; as a flag the dots "
            "and underscores are dashes. Lists are parted by commas."
        ),
    ]
    for binary, tree in (("onex-orchestrator", OrchestratorSettings), ("onex-worker", WorkerSettings)):
        lines += ["", f"## {binary}", "", "| setting | default | meaning |", "|---|---|---|"]
        known = meanings(tree)
        for path in paths(tree):
            value: object = _defaults(tree)
            for name in path.split("."):
                value = getattr(value, name)
            shown = ", ".join(value) if isinstance(value, tuple) else value
            shown = str(shown).lower() if isinstance(shown, bool) else shown
            lines.append(f"| `{path}` | {f'`{shown}`' if shown != '' else ''} | {known[path]} |")
    return "\n".join(lines) + "\n"


def telemetry() -> str:
    """docs/telemetry.md: spans and metrics."""
    lines = [
        "# Telemetry",
        NOTE,
        (
            "The binaries send traces and metrics by OTLP when the standard variables say so (`OTEL_EXPORTER_OTLP_ENDPOINT`; "
            "install the extra `otlp`), and do nothing otherwise. The trace context of a start is kept in the run's first "
            "event and travels to every handler. Telemetry never blocks or fails the cluster."
        ),
        "",
        "## Spans",
        "",
        "| name | meaning |",
        "|---|---|",
        *(f"| `{span.name.format('…')}` | {span.meaning} |" for span in names.SPANS),
        "",
        "## Metrics",
        "",
        "| name | kind | unit | attributes | meaning |",
        "|---|---|---|---|---|",
        *(
            f"| `{m.name}` | {m.kind} | `{m.unit}` | {', '.join(f'`{a}`' for a in m.attributes)} | {m.meaning} |"
            for m in names.METRICS
        ),
    ]
    return "\n".join(lines) + "\n"


def _defaults(tree: type[Settings]) -> Settings:
    return tree()


PAGES: dict[str, Callable[[], str]] = {
    "errors.md": errors,
    "configuration.md": configuration,
    "telemetry.md": telemetry,
}


def main(arguments: list[str]) -> int:
    """Write all pages, or with --check say which are stale."""
    stale = []
    for name, make in PAGES.items():
        page = DOCS / name
        wanted = make()
        if not page.exists() or page.read_text() != wanted:
            stale.append(name)
            if "--check" not in arguments:
                page.write_text(wanted)
    if stale and "--check" in arguments:
        print(f"stale: {', '.join('docs/' + name for name in stale)}; run ./scripts/gen-docs", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
