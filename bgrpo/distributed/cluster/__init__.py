"""A local autoscaling cluster, and the way into any cluster."""
