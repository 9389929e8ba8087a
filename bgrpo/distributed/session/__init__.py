"""The driver's connection to Ray: room, autoscaling, loss of the head."""
