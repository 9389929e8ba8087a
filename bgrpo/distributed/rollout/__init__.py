"""Rollouts as a service: the actors that decode, those that check, and how learners and drivers reach them."""
