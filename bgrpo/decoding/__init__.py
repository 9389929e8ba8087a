"""Beam search and sampling for many prompts at once, through an unmodified Hugging Face causal language model."""

from bgrpo.decoding.engine import DecodeEngine
from bgrpo.decoding.settings import DecodeSettings

__all__ = ["DecodeEngine", "DecodeSettings"]
