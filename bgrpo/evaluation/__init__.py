"""Metrics of a policy, with intervals and comparisons."""
