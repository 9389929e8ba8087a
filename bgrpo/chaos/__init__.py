"""Faults injected into a run on purpose: the library of faults, the schedule, what became of each, and the verdict."""
