"""Reading configuration strictly: YAML, overrides, types with bounds, and messages in plain words."""
