"""Types of configuration values: numbers are finite and bounded, text is text, and nothing is turned into another."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from bgrpo.settings.paths import expanded


class Section(BaseModel):
    """Base of every section: unknown keys are refused, values are of the type itself, nothing changes later."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, strict=True, allow_inf_nan=False)


class KeysOf:
    """Marks a mapping whose keys are dotted keys of a section, whose types they have; of None: of any type."""

    def __init__(self, section: type[Section] | None) -> None:
        self.section = section


def _printable(text: str) -> str:
    if any(character < " " or character == "\x7f" or "\ud800" <= character <= "\udfff" for character in text):
        raise ValueError("expected text in UTF-8 without control characters")
    return text


def _plain_options(options: dict[str, Any]) -> dict[str, Any]:
    _check_plain(options)
    return options


def _check_plain(value: Any) -> None:
    """What YAML and JSON can hold, finite."""
    if isinstance(value, dict):
        for key, item in value.items():
            _printable(key)
            _check_plain(item)
    elif isinstance(value, list | tuple):
        for item in value:
            _check_plain(item)
    elif isinstance(value, str):
        _printable(value)
    elif isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{value} is not a finite number")


Seed = Annotated[int, Field(ge=0, lt=2**32)]
Positive = Annotated[int, Field(ge=1, le=10**12)]
NonNegative = Annotated[int, Field(ge=0, le=10**12)]
Batch = Annotated[int, Field(ge=1, le=10**6)]
"""Of things that are in memory at once."""
Epochs = Annotated[float, Field(gt=0, le=10**6)]
"""Passes over all problems."""
Width = Annotated[int, Field(ge=1, le=10**5)]
"""Of beams of one prompt."""
Samples = Annotated[int, Field(ge=0, le=10**5)]
"""Of one prompt; 0: none."""
Few = Annotated[int, Field(ge=1, le=10**4)]
"""Of processes, passes, parts."""
FewOrNone = Annotated[int, Field(ge=0, le=10**4)]
Threads = Annotated[int, Field(ge=1, le=1024)]
ThreadsOrAuto = Annotated[int, Field(ge=0, le=1024)]
Cores = Annotated[float, Field(ge=0, le=10**4)]
"""CPUs or GPUs that a process reserves."""
Seconds = Annotated[float, Field(gt=0, le=10**6)]
"""Of a wait."""
LEAST = 1e-30
"""Of what multiplies tensors: far less is 0 in float32, and trains nothing without a word."""
Scale = Annotated[float, Field(ge=LEAST, le=10**6)]
Rate = Annotated[float, Field(ge=LEAST, le=10)]
"""Of learning."""
Weight = Annotated[float, Field(ge=0, le=10**6)]
Fraction = Annotated[float, Field(ge=0, le=1)]

Text = Annotated[str, Field(min_length=1, max_length=10_000), AfterValidator(_printable)]
FreeText = Annotated[str, Field(min_length=1, max_length=1000)]
"""Any text, line breaks and other control characters too."""
PathText = Annotated[Text, AfterValidator(expanded)]
Options = Annotated[dict[str, Any], AfterValidator(_plain_options)]
