"""`onexflow explain`: what an error code means and what to do."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from inspect import cleandoc
from pathlib import Path

from onexflow.core.errors import BY_CODE, InvalidArgument, Unavailable


def explain(code: str, /) -> None:
    """What an error code means and what to do.

    Example: onexflow explain OXF-4003

    Parameters
    ----------
    code
        As in `error: … [OXF-4003]`. `all` lists every code.
    """
    if code == "all":
        for known, kind in sorted(BY_CODE.items()):
            print(f"{known}  {kind.__name__:<22} {cleandoc(kind.__doc__ or '').splitlines()[0]}")
        return
    wanted = code.upper() if code.upper().startswith("OXF-") else f"OXF-{code}"
    error = BY_CODE.get(wanted)
    if error is None:
        near = get_close_matches(wanted, BY_CODE, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}? " if near else ""
        raise InvalidArgument(
            f"there is no error code {code}", {"hint": f"{hint}`onexflow explain all` lists them."}, field="code"
        )
    page = _page(wanted)
    if page:
        print(page)
        return
    print(f"{wanted} {error.__name__}\n\n{cleandoc(error.__doc__ or '')}")
    if error.hint:
        print(f"\n{error.hint}")
    if error.retryable and error.hint != Unavailable.hint:
        print("\nTrying again may help; calls with the same request_id may be repeated safely.")


def _page(code: str) -> str:
    """The section of docs/errors.md about `code`, as plain text; empty when the page is not here."""
    # Shipped in the wheel; in a checkout it is where people edit it.
    places = (files("onexflow") / "errors.md", Path(str(files("onexflow"))).parents[1] / "docs" / "errors.md")
    page = next((place for place in places if place.is_file()), None)
    if page is None:
        return ""
    _, found, rest = page.read_text(encoding="utf-8").partition(f"\n## {code}\n")
    section = rest.partition("\n## ")[0].strip() if found else ""
    return f"{code} {section}".replace("*", "") if section else ""
