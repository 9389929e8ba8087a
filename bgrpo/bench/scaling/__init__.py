"""Throughput against the number of rollout actors: measured for 1 and 2, simulated beyond."""
