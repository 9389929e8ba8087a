"""One training run: ``python -m ray_jobs.train --config quickstart key=value …``, the same as ``bgrpo train …``.

This is what ``ray job submit --working-dir . -- python -m ray_jobs.train …`` runs on a cluster.
"""

from __future__ import annotations

import sys

from bgrpo.cli.app import main
from bgrpo.runs.stopping import end_of

if __name__ == "__main__":
    sys.exit(end_of(main(["train", *sys.argv[1:]])))
