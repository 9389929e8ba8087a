"""Supervised training of a policy, and its model card."""
