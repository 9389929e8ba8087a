"""What ``bgrpo filter`` does."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bgrpo.cli.data_files import check_out
from bgrpo.cli.measure import Decoding, load_decoding_policy, tell, written
from bgrpo.display.terminal import progress_bar, table_console
from bgrpo.errors import RunError
from bgrpo.evaluation.decode_journal import Journal, journaled
from bgrpo.evaluation.ranks import rank_in
from bgrpo.tasks.base import Record, Task
from bgrpo.tasks.data_streams import stream
from bgrpo.tasks.histogram import PROGRESS_EVERY
from bgrpo.tasks.selection import Bounds, Selection, kept

if TYPE_CHECKING:
    from bgrpo.policies.io import LoadedPolicy

RANK, TOO_LONG = "rank", "too long for the policy"
SHARES = (1, 2, 3, 5, 10, 25, 50, 100)
Placed = tuple[Path, Record]
Show = Callable[[int, int | None], None]


@dataclass(frozen=True, slots=True)
class Solving:
    """Which problems stay by what a policy solves.

    Attributes:
        decoding: the policy and the judge.
        width: of the beam search.
        ranks: where the first correct beam must stand; None: there must be none.
        batch: problems decoded at once.
    """

    decoding: Decoding
    width: int
    ranks: list[Bounds] | None
    batch: int

    def takes(self, rank: int | None) -> bool:
        """Whether a problem with this first correct rank stays."""
        if self.ranks is None or rank is None:
            return self.ranks is None and rank is None
        return any(rank in bounds for bounds in self.ranks)


@dataclass(slots=True)
class Tally:
    """What became of the problems."""

    read: int = 0
    kept: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    ranks: Counter[int | None] = field(default_factory=Counter)

    def reasons(self) -> str:
        """How many were left out, and for what."""
        parts = [f"{count:,} by {name}" for name, count in self.left_out.most_common()]
        return f"left out: {', '.join(parts) or 'none'}"


class _NothingKept(Exception):
    pass


def filter_files(
    task: Task,
    data: Sequence[Path],
    out: Path,
    selection: Selection,
    solving: Solving | None,
    first: int | None,
    overwrite: bool,
    as_json: bool,
) -> int:
    """Write the problems that stay, in their order, complete or not at all, and print what became of all of them.

    Raises:
        UserError: a file or an option does not fit.
        RunError: no problem stays.
    """
    check_out(task, out, overwrite, data)
    tally = Tally()
    with ExitStack() as stack:
        show = stack.enter_context(progress_bar("filtering"))
        selected = _selected(task, data, selection, tally, show)
        stays: Generator[Record] = (record for _, record in selected)
        journal: Journal | None = None
        if solving is not None:
            policy = load_decoding_policy(solving.decoding)
            journal = stack.enter_context(_journal(solving, policy, out))
            stays = stack.enter_context(closing(_solved(selected, solving, policy, journal, tally)))
        with suppress(_NothingKept), written(out) as file:
            for record in itertools.islice(stays, first):
                file.write(f"{record.text}\n")
                tally.kept += 1
            if not tally.kept:
                raise _NothingKept
    if journal is not None and journal.recalled:
        tell(f"note: {journal.recalled:,} of these problems had been decoded before")
    if not tally.kept:
        raise RunError(f"no problem of {tally.read:,} stays, {out} is not written; {tally.reasons()}")
    _print(tally, out, solving, as_json)
    return 0


def _selected(task: Task, data: Sequence[Path], selection: Selection, tally: Tally, show: Show) -> Iterator[Placed]:
    """The problems that pass all tests that need no policy, each with its file."""

    def leave_out(reason: str) -> None:
        tally.left_out[reason] += 1

    tests = selection.tests()
    for path in data:
        for record in kept(_read(stream(task, path), tally, show), tests, leave_out):
            yield path, record


def _read(records: Iterable[Record], tally: Tally, show: Show) -> Iterator[Record]:
    for record in records:
        tally.read += 1
        if tally.read % PROGRESS_EVERY == 0:
            show(tally.read, None)
        yield record


def _solved(
    items: Iterable[Placed], solving: Solving, policy: LoadedPolicy, journal: Journal, tally: Tally
) -> Generator[Record]:
    """The problems that stay by the rank of their first correct beam."""
    from bgrpo.runs.prompt_lengths import longest_prompt
    from bgrpo.training.measuring import judged_decoder

    decoding = solving.decoding
    longest = decoding.max_new_tokens
    most = longest_prompt(policy, decoding.config.rollout, longest, "--max-new-tokens")
    batches = _readable_batches(items, solving.batch, policy, most, tally)
    start = next(batches, None)
    if start is None:
        return
    path, batch = start
    problems = [record.problem for record in batch]
    tried = judged_decoder(policy, decoding.config, problems, longest, str(path), "--max-new-tokens", tell)
    with tried as (decoder, _):
        decode = journal.over(decoder)
        for _, batch in itertools.chain([start], batches):
            groups = decode([record.problem for record in batch], "beam", solving.width, None)
            for record, group in zip(batch, groups, strict=True):
                rank = rank_in(group)
                tally.ranks[rank] += 1
                if solving.takes(rank):
                    yield record
                else:
                    tally.left_out[RANK] += 1


def _readable_batches(
    items: Iterable[Placed], size: int, policy: LoadedPolicy, most: int, tally: Tally
) -> Iterator[tuple[Path, list[Record]]]:
    """Batches of problems of one file whose prompts have at most ``most`` tokens."""
    from bgrpo.runs.prompt_lengths import prompt_lengths

    for path, of_file in itertools.groupby(items, key=lambda item: item[0]):
        while records := [record for _, record in itertools.islice(of_file, size)]:
            lengths = prompt_lengths([record.problem for record in records], policy, str(path))
            fitting = [record for record, length in zip(records, lengths, strict=True) if length <= most]
            if len(fitting) < len(records):
                tally.left_out[TOO_LONG] += len(records) - len(fitting)
            if fitting:
                yield path, fitting


def _journal(solving: Solving, policy: LoadedPolicy, out: Path) -> Any:
    """What was decoded so far, beside the file that is to be written."""
    from bgrpo.runs.same_input import policy_digest

    config = solving.decoding.config
    of = {
        "policy": policy_digest(policy),
        "max_new_tokens": solving.decoding.max_new_tokens,
        "dtype": config.rollout.dtype,
        "engine": config.rollout.engine,
        "task": [config.task.name, config.task.options],
        "reward": config.reward.model_dump(mode="json"),
    }
    return journaled(out.with_name(f"{out.name}.decoded"), of)


def _print(tally: Tally, out: Path, solving: Solving | None, as_json: bool) -> None:
    if as_json:
        result: dict[str, Any] = {"read": tally.read, "kept": tally.kept, "left_out": dict(tally.left_out)}
        if solving is not None:
            tried, shares = tally.ranks.total(), _shares(tally, solving.width)
            listed = {str(rank): tally.ranks[rank] for rank in sorted(r for r in tally.ranks if r is not None)}
            result |= {"decoded": tried, "ranks": listed, "unsolved": tally.ranks[None], "solved_within": shares}
        print(json.dumps(result | {"out": str(out)}))
        return
    print(f"{out}: {tally.kept:,} of {tally.read:,} problems; {tally.reasons()}")
    if solving is None:
        return
    table = Table(title=f"first correct beam of {tally.ranks.total():,} problems, width {solving.width}")
    for name in ("rank", "problems", "solved so far"):
        table.add_column(name, justify="right")
    below = 0
    for low, high in itertools.pairwise([0, *_shares(tally, solving.width)]):
        count = sum(tally.ranks[rank] for rank in range(low + 1, high + 1))
        below += count
        name = str(high) if high == low + 1 else f"{low + 1}–{high}"
        table.add_row(name, f"{count:,}", f"{below / max(1, tally.ranks.total()):.1%}")
    table.add_row("none", f"{tally.ranks[None]:,}", "")
    table_console().print(table)


def _shares(tally: Tally, width: int) -> dict[int, float]:
    """Share of the decoded problems that the best k beams solve, for some k up to the width."""
    total = max(1, tally.ranks.total())
    ks = sorted({*(k for k in SHARES if k < width), width})
    return {k: sum(tally.ranks[rank] for rank in range(1, k + 1)) / total for k in ks}
