"""A pool of Ray actors that answers requests, whichever of them die."""
