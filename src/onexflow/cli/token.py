"""`onexflow token`: a new secret, and what the access policy needs of it."""

from __future__ import annotations

import os
from hashlib import sha256
from typing import Annotated, Literal

from cyclopts import Parameter

from onexflow.cli.output import Output

#: Bytes of randomness: nobody guesses it, so its hash needs no salt.
_BYTES = 32


def token(*, output: Annotated[Literal["table", "json"], Parameter(name=["--output", "-o"])] = "table") -> None:
    """Make a token. It is shown once, on stdout; the line for the access policy comes on stderr.

    Example: (umask 077; onexflow token > billing.token)

    Parameters
    ----------
    output
        For people (table) or for programs (json).
    """
    made = "oxf_" + os.urandom(_BYTES).hex()
    digest = f"sha256:{sha256(made.encode()).hexdigest()}"
    out = Output(output)
    if out.json:
        out.data({"token": made, "sha256": digest})
        return
    out.line(made)
    out.note(f'tokens = ["{digest}"]')
