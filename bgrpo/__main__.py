"""``python -m bgrpo``: the command ``bgrpo``."""

import sys

from bgrpo.cli.app import main

sys.exit(main())
