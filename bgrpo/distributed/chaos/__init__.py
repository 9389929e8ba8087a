"""Runs that are disturbed on purpose. See :mod:`bgrpo.chaos` for what decides and judges."""
