"""Who waits for whom: stacks, logs, metrics."""
