"""Policies: models, their text, loading and saving."""
