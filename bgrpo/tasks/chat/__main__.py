"""Conversations, and models to learn from them, out of installed packages: ``python -m bgrpo.tasks.chat``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from bgrpo.errors import UserError
from bgrpo.files import write_atomically

MANY = 10**6
app = typer.Typer(help=__doc__, add_completion=False)


@app.command("models")
def write_models(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the models' folders.")],
    only: Annotated[list[str] | None, typer.Option("--only", help="smollm2_135m or minilm; may be repeated.")] = None,
) -> None:
    """Write a language model and a sentence encoder as folders."""
    from bgrpo.tasks.chat.models import MODELS

    unknown = sorted(set(only or []) - set(MODELS))
    if unknown:
        raise UserError(f"--only {unknown[0]}: expected {' or '.join(MODELS)}")
    for name in only or MODELS:
        MODELS[name](out.expanduser() / name)
        print(out / name)


@app.command("data")
def write_data(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the four files.")],
    pairs: Annotated[
        int, typer.Option("--pairs", min=1, max=MANY, help="At most so many pairs to learn from.")
    ] = 20_000,
    held_out_pairs: Annotated[
        int, typer.Option("--held-out-pairs", min=1, max=MANY, help="At most so many others.")
    ] = 1_000,
    held_out_speakers: Annotated[
        float, typer.Option("--held-out-speakers", min=0.01, max=0.99, help="Chance of a speaker to be held out.")
    ] = 0.3,
    turns: Annotated[int, typer.Option("--turns", min=1, max=MANY, help="Most turns in a prompt, odd.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MANY, help="The same seed gives the same files.")] = 0,
) -> None:
    """Write ``pairs.jsonl``, ``prompts.jsonl`` and both of held-out speakers; no speaker is on both sides."""
    from bgrpo.tasks.chat.replies import load_conversations, preference_pairs, prompt_records, split_replies

    if turns % 2 == 0:
        raise UserError(f"--turns {turns}: expected an odd number, so that the user begins a prompt")
    sides = split_replies(load_conversations(), seed, held_out_speakers, turns)
    for replies, count, prefix in zip(sides, (pairs, held_out_pairs), ("", "held_out_"), strict=True):
        _write(out.expanduser() / f"{prefix}pairs.jsonl", preference_pairs(replies, count, seed))
        _write(out.expanduser() / f"{prefix}prompts.jsonl", prompt_records(replies[:count]))


@app.command("dialogue")
def write_dialogues(
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the four files.")],
    exchanges: Annotated[
        int, typer.Option("--exchanges", min=1, max=MANY, help="At most so many exchanges to learn from.")
    ] = 20_000,
    held_out_exchanges: Annotated[
        int, typer.Option("--held-out-exchanges", min=1, max=MANY, help="At most so many to validate, and to test.")
    ] = 1_000,
    held_out_speakers: Annotated[
        float, typer.Option("--held-out-speakers", min=0.01, max=0.99, help="Chance of a speaker to be held out.")
    ] = 0.3,
    story_conversations: Annotated[
        float,
        typer.Option("--story-conversations", min=0.01, max=0.99, help="Chance of a conversation to give stories."),
    ] = 0.3,
    turns: Annotated[int, typer.Option("--turns", min=1, max=MANY, help="Most turns in a context, odd.")] = 3,
    seed: Annotated[int, typer.Option("--seed", min=0, max=MANY, help="The same seed gives the same files.")] = 0,
) -> None:
    """Write ``train.jsonl``, ``valid.jsonl``, ``test.jsonl`` and ``stories.jsonl``, for the task ``dialogue``."""
    from bgrpo.tasks.chat.personas import make_dialogues
    from bgrpo.tasks.chat.replies import load_conversations

    if turns % 2 == 0:
        raise UserError(f"--turns {turns}: expected an odd number, so that the partner begins a context")
    made = make_dialogues(load_conversations(), seed, held_out_speakers, story_conversations, turns)
    limits = {"train": exchanges, "valid": held_out_exchanges, "test": held_out_exchanges, "stories": MANY}
    for name, rows in made._asdict().items():
        _write(out.expanduser() / f"{name}.jsonl", rows[: limits[name]])


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"{path}: {len(rows):,} lines")


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status. A user's error is one line."""
    try:
        app(arguments, prog_name="python -m bgrpo.tasks.chat")
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SystemExit as end:  # of typer, when the command is done
        return int(end.code or 0)
    return 0


if __name__ == "__main__":
    sys.exit(main())
