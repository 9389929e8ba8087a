"""A comparison of algorithms: ``python -m ray_jobs.sweep --config NAME key=value …``, the same as ``bgrpo sweep …``.

This is what ``ray job submit --working-dir . -- python -m ray_jobs.sweep …`` runs on a cluster.
"""

from __future__ import annotations

import sys

from bgrpo.cli.app import main
from bgrpo.runs.stopping import end_of

if __name__ == "__main__":
    sys.exit(end_of(main(["sweep", *sys.argv[1:]])))
