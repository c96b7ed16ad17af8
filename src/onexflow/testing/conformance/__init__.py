"""One suite a port: every adapter is tested by the same class, subclassed with a fixture that makes the adapter."""

from __future__ import annotations

import pytest

pytest.register_assert_rewrite(f"{__name__}.event_store", f"{__name__}.registry")
