"""Runs: the driver, the learners, and the watch over both."""
