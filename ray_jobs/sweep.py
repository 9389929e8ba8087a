"""One sweep: ``python -m ray_jobs.sweep --config quick key=value … [--resume SWEEP]``.

This is what ``bgrpo sweep`` runs, and what ``ray job submit --working-dir . -- python -m ray_jobs.sweep …`` runs on a
cluster. Exit status: 0 finished, 1 every trial failed, 2 wrong usage, 143 stopped with checkpoints.
"""

from __future__ import annotations

import argparse
import sys

from bgrpo.errors import RunError, UserError


def parse(arguments: list[str]) -> argparse.Namespace:
    """The command line; overrides are checked by the configuration, not here."""
    parser = argparse.ArgumentParser(prog="python -m ray_jobs.sweep", description=__doc__)
    parser.add_argument("--config", help="name of a shipped configuration, or a YAML file (default: the defaults)")
    parser.add_argument("--resume", metavar="SWEEP", help="go on with this sweep's trials")
    parser.add_argument("--retry-failed", action="store_true", help="with --resume: run failed trials again")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="for example confirm_seeds=5")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Run, and turn the user's errors into one line."""
    options = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        from bgrpo.sweep.sweep_driver import sweep_from_command_line  # heavy: after parsing

        return sweep_from_command_line(
            options.config, options.overrides, options.resume, options.retry_failed, options.json
        )
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
