"""Passwords are hidden, and nothing else is."""

from __future__ import annotations

import pytest

from bgrpo.runs.redaction import redact_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://u:p@ss@db/x?password=s&ssl=on", "postgresql://***@db/x?password=***&ssl=on"),
        ("two: ftp://a:b@c and https://d@e", "two: ftp://***@c and https://***@e"),
        ("TOKEN=abc Secret=d", "TOKEN=*** Secret=***"),
        ("no credentials in a@b.c or http://host/a@b", "no credentials in a@b.c or http://host/a@b"),
        ("", ""),
    ],
)
def test_what_is_hidden(text: str, shown: str) -> None:
    assert redact_credentials(text) == shown
    assert redact_credentials(shown) == shown
