"""What the commands on conversations do: chat models, chat data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bgrpo.errors import UserError
from bgrpo.files import write_atomically


def write_chat_models(out: Path, only: list[str]) -> int:
    """Write the models, or those that are named, into folders below ``out``."""
    from bgrpo.tasks.chat.models import MODELS

    unknown = sorted(set(only) - set(MODELS))
    if unknown:
        raise UserError(f"--only {unknown[0]}: expected {' or '.join(MODELS)}")
    for name in only or MODELS:
        MODELS[name](out / name)
        print(out / name)
    return 0


def write_chat_data(out: Path, pairs: int, held_out_pairs: int, held_out_speakers: float, turns: int, seed: int) -> int:
    """Write ``pairs.jsonl``, ``held_out.jsonl``, ``prompts.jsonl`` and ``held_out_prompts.jsonl``."""
    from bgrpo.tasks.chat.replies import load_conversations, preference_pairs, prompt_records, split_replies

    if turns % 2 == 0:
        raise UserError(f"--turns {turns}: expected an odd number, so that the user begins a prompt")
    sides = split_replies(load_conversations(), seed, held_out_speakers, turns)
    for replies, count, prefix in zip(sides, (pairs, held_out_pairs), ("", "held_out_"), strict=True):
        _write(out / (f"{prefix}pairs.jsonl"), preference_pairs(replies, count, seed))
        _write(out / (f"{prefix}prompts.jsonl"), prompt_records(replies[:count]))
    return 0


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror})") from error
    print(f"{path}: {len(rows):,} lines")
