"""Faults injected into a run on purpose: the schedule, what became of each, and the comparison. No Ray here."""
