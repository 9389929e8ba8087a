"""An autoscaling cluster on this machine, and jobs sent to any."""
