"""Texts with places to fill, as ``{title}``."""

from __future__ import annotations

import re

PLACE = re.compile(r"\{[^{}]*\}")


def filled(form: str, **values: str) -> str:
    """The form with its places filled, all at once: a value may hold what looks like a place."""
    return PLACE.sub(lambda found: values[found[0][1:-1]], form)
