"""Environment of processes that are our own: commands, and actors of Ray."""

ALLOCATOR_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
"""For the C library, which reads it when a process starts. Without it every large tensor goes back to the system at
once, and the next one pays page faults."""

LIGHT_ENVIRONMENT = {"DISABLE_MLFLOW_INTEGRATION": "TRUE"}
"""For transformers. TRL would import MLflow with its web framework into every learner, a tenth of the learner's start,
for a report of its own that nobody asks for; runs are tracked by :mod:`bgrpo.runs.mlflow_tracking`."""
