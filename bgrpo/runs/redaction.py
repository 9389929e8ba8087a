"""Passwords in texts that are kept or shown: in URIs, and behind ``password=`` and the like."""

from __future__ import annotations

import re

REDACTED = "***"

_CREDENTIALS = re.compile(r"(?<=//)[^/\s]+(?=@)")
_SECRET_PARAMETERS = re.compile(r"(?i)((?:password|passwd|token|secret)=)[^&\s]+")


def redact_credentials(text: str) -> str:
    """``text`` with the user and password of each URI, and the value of ``password=`` and the like, as ``***``."""
    return _SECRET_PARAMETERS.sub(rf"\g<1>{REDACTED}", _CREDENTIALS.sub(REDACTED, text))
