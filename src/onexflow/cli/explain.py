"""`onexflow explain`: what an error code means and what to do."""

from __future__ import annotations

from difflib import get_close_matches
from importlib.resources import files
from inspect import cleandoc

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
    """The section of docs/errors.md that is about `code`; empty when the page is not shipped."""
    shipped = files("onexflow") / "errors.md"
    if not shipped.is_file():
        return ""
    lines = shipped.read_text(encoding="utf-8").splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("#")]
    for number in heads:
        if code in lines[number]:
            end = next((later for later in heads if later > number), len(lines))
            return "\n".join([lines[number].lstrip("# "), *lines[number + 1 : end]]).strip()
    return ""
