"""A training run from its start to its end, wherever its work is done; here, in this process."""
