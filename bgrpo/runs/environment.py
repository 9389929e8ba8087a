"""How processes that decode or learn keep freed memory."""

ALLOCATOR_ENVIRONMENT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "2147483647"}
"""For the C library, which reads it when a process starts. Without it every large tensor goes back to the system at
once, and the next one pays page faults."""
