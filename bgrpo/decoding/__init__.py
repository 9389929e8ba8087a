"""Beam search and sampling for many prompts at once, through an unmodified Hugging Face causal language model.

The engine, and PyTorch with it, is imported when it is first used: the rollout service knows settings, and no model.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bgrpo.decoding.settings import DecodeSettings

if TYPE_CHECKING:
    from bgrpo.decoding.engine import DecodeEngine

__all__ = ["DecodeEngine", "DecodeSettings"]


def __getattr__(name: str) -> Any:
    if name != "DecodeEngine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from bgrpo.decoding.engine import DecodeEngine

    globals()[name] = DecodeEngine
    return DecodeEngine
