"""One run's folder, checkpoints, budget and tracking."""
