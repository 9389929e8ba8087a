"""Supervised training of a policy: ``python -m ray_jobs.pretrain --config NAME key=value … [--resume RUN]``.

This is what ``bgrpo pretrain`` runs. Exit status: 0 finished, 1 failed, 2 wrong usage, 143 stopped with a complete
checkpoint.
"""

from __future__ import annotations

import argparse
import sys

from bgrpo.errors import RunError, UserError


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; overrides are checked by the configuration, not here."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.pretrain", description=__doc__)
    parser.add_argument("--config", help="name of a shipped configuration, or a YAML file (default: the defaults)")
    parser.add_argument("--resume", metavar="RUN", help="continue this run from its last complete checkpoint")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example batch_size=128")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run, and turn the user's errors into one line."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        from bgrpo.distributed.train.pretrain import run_from_command_line  # heavy: after parsing

        return run_from_command_line(options.config, options.overrides, options.resume)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
