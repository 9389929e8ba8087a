"""The commands on files: filter, mix, overlap, histogram, convert. Only parsing happens here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bgrpo.cli.arguments import (
    MANY,
    AsJson,
    ConfigName,
    NewTokens,
    Overwrite,
    Png,
    SelectionCommand,
    TaskName,
    TaskOptions,
    Threads,
    path_of,
    path_text,
)
from bgrpo.errors import UserError

DataFiles = Annotated[
    list[Path],
    typer.Option(
        "--data", parser=path_of, metavar="FILE", help="Data file; further ones may follow it, or in options like it."
    ),
]
Range = Annotated[list[str] | None, typer.Option(metavar="RANGE", help="4, 2-4, 2- or -4; may be repeated.")]
REST = {"allow_extra_args": True, "ignore_unknown_options": True}


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command("filter", cls=SelectionCommand, context_settings=REST)(filter_command)
    app.command("convert")(convert)
    app.command("mix")(mix)
    app.command("overlap")(overlap)
    app.command("histogram", context_settings={"allow_extra_args": True})(histogram)


def filter_command(
    context: typer.Context,
    data: DataFiles,
    out: Annotated[Path, typer.Option("--out", parser=path_of, metavar="FILE", help="Data file to write.")],
    category: Annotated[
        list[str] | None, typer.Option("--category", help="Problems of this category, as 4_4; may be repeated.")
    ] = None,
    outcome: Annotated[
        list[str] | None,
        typer.Option(
            "--outcome", help="Problems whose own answer is correct, wrong, trivial, …, none; may be repeated."
        ),
    ] = None,
    prompt_words: Annotated[
        list[str] | None, typer.Option("--prompt-words", metavar="RANGE", help="Words of the prompt: 4, 2-4, 2-, -4.")
    ] = None,
    answer_words: Annotated[
        list[str] | None, typer.Option("--answer-words", metavar="RANGE", help="Words of the known answer.")
    ] = None,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            "--exclude", parser=path_of, metavar="FILE", help="Not the problems of this file; may be repeated."
        ),
    ] = None,
    distinct: Annotated[bool, typer.Option("--distinct", help="Each problem once, the first of several.")] = False,
    solved_by: Annotated[
        str | None,
        typer.Option("--solved-by", parser=path_text, metavar="POLICY", help="Problems that its beam search solves."),
    ] = None,
    unsolved_by: Annotated[
        str | None,
        typer.Option(
            "--unsolved-by", parser=path_text, metavar="POLICY", help="Problems that its beam search does not solve."
        ),
    ] = None,
    beam_width: Annotated[int, typer.Option("--beam-width", min=1, max=10**5, help="Of that search.")] = 25,
    ranks: Annotated[
        list[str] | None,
        typer.Option("--ranks", metavar="RANGE", help="With --solved-by: rank of the first correct beam, as 2-25."),
    ] = None,
    first: Annotated[int | None, typer.Option("--first", min=1, max=10**9, help="At most so many problems.")] = None,
    config: ConfigName = None,
    max_new_tokens: NewTokens = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=MANY, help="Problems decoded at once.")] = 64,
    threads: Threads = 0,
    task: TaskName = None,
    task_option: TaskOptions = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Write the problems of data files that are as asked for: by degrees, length, own answer, what a policy solves.

    Further options, --NAME RANGE, are what the task tells of its problems. KEY=VALUE are configuration keys, which say
    how a policy's answers are judged. What was decoded is kept in OUT.decoded until the command is done: the same
    command goes on there.
    """
    from bgrpo.cli.filter import Solving, filter_files
    from bgrpo.cli.measure import Decoding
    from bgrpo.cli.task_options import named_task, split_words, task_overrides
    from bgrpo.tasks.selection import WORDS, Selection, bounds_of, checked_outcomes, keys_in, quantity_bounds

    chosen = named_task(task, task_option or [])
    options, overrides, files = split_words(context.args)
    quantities = quantity_bounds(chosen, options)
    for name, given in zip(WORDS, (prompt_words, answer_words), strict=True):
        if given:
            quantities[name] = bounds_of(f"--{name.replace('_', '-')}", given)
    if solved_by is not None and unsolved_by is not None:
        raise UserError("--solved-by and --unsolved-by are both given: give one of them")
    policy, solving = solved_by or unsolved_by, None
    if policy is None and (ranks or overrides or config):
        raise UserError(
            "--ranks, --config and KEY=VALUE say how a policy's answers are judged: give --solved-by POLICY"
        )
    if unsolved_by is not None and ranks:
        raise UserError("--ranks needs --solved-by: an unsolved problem has no rank")
    if policy is not None:
        given = [*task_overrides(task, task_option or []), *overrides]
        within = None if unsolved_by is not None else bounds_of("--ranks", ranks or [f"1-{beam_width}"])
        decoding = Decoding.chosen(policy, config, given, max_new_tokens, threads)
        solving = Solving(decoding, beam_width, within, batch)
    selection = Selection(chosen, quantities, category or (), checked_outcomes(outcome or ()), set(), distinct)
    selection.exclude = keys_in(chosen, exclude or ())
    return filter_files(chosen, [*data, *files], out, selection, solving, first, overwrite, as_json)


def mix(
    data: Annotated[
        list[str],
        typer.Option("--data", parser=path_text, metavar="FILE=SHARE", help="File and its share; may be repeated."),
    ],
    out: Annotated[Path, typer.Option("--out", parser=path_of, metavar="FILE", help="Data file to write.")],
    count: Annotated[
        int | None,
        typer.Option("--count", min=1, max=10**9, help="Problems to write; default: as many as the shares allow."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="The same seed gives the same file.")] = 0,
    task: TaskName = None,
    task_option: TaskOptions = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Draw a data file from several, by shares; a problem counts for the first file that has it."""
    from bgrpo.cli.data_files import mix_files
    from bgrpo.cli.task_options import named_task

    return mix_files(named_task(task, task_option or []), data, count, seed, out, overwrite, as_json)


def overlap(
    first: Annotated[Path, typer.Argument(parser=path_of, metavar="FILE", help="A data file.")],
    second: Annotated[Path, typer.Argument(parser=path_of, metavar="FILE", help="Another.")],
    task: TaskName = None,
    task_option: TaskOptions = None,
    as_json: AsJson = False,
) -> int:
    """Count the problems that two data files share, whatever their writing."""
    from bgrpo.cli.data_files import show_overlap
    from bgrpo.cli.task_options import named_task

    return show_overlap(named_task(task, task_option or []), first, second, as_json)


def histogram(
    context: typer.Context,
    data: DataFiles,
    task: TaskName = None,
    task_option: TaskOptions = None,
    png: Png = None,
    as_json: AsJson = False,
) -> int:
    """Count the problems of data files by what their task tells of them: degrees, categories, lengths."""
    from bgrpo.cli.data_files import show_histogram
    from bgrpo.cli.task_options import named_task, split_words

    options, overrides, files = split_words(context.args)
    if options or overrides:
        raise UserError(f"histogram: {[*options, *overrides][0]!r} is no file")
    return show_histogram(named_task(task, task_option or []), [*data, *files], png, as_json)


def convert(
    source: Annotated[
        Path,
        typer.Argument(
            parser=path_of, metavar="SOURCE", help="A .pt or .safetensors file, a policy's folder, or a run."
        ),
    ],
    out: Annotated[
        Path,
        typer.Option("--out", parser=path_of, metavar="PATH", help="Folder of the policy, or NAME.pt; for a run: DIR."),
    ],
    config: Annotated[
        Path | None,
        typer.Option("--config", parser=path_of, metavar="JSON", help="Of a file; default: its name with .json."),
    ] = None,
    runs: Annotated[Path, typer.Option("--runs", parser=path_of, metavar="DIR", help="Folder of all runs.")] = Path(
        "runs"
    ),
    task: TaskName = None,
    task_option: TaskOptions = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Convert a policy to the task's own checkpoint format, or back; of a run every checkpoint and the policy."""
    from bgrpo.cli.convert import convert_policy
    from bgrpo.cli.task_options import named_task

    return convert_policy(named_task(task, task_option or []), source, out, config, runs, overwrite, as_json)
