"""The ``bgrpo`` command. Only parsing happens here: everything heavy is imported when a command runs.

Exit status: 0 done, 1 failed, 2 wrong usage or input, 129 stopped because its terminal was closed, 130 stopped by
Ctrl-C, 141 nobody reads the output any more, 143 stopped by SIGTERM or the file stop. A run that was stopped goes on
with --resume.
"""

from __future__ import annotations

import io
import os
import select
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from bgrpo.cli.arguments import (
    MANY,
    AsJson,
    CommandLine,
    ConfigName,
    DataFile,
    GeneratorCommand,
    NewTokens,
    Overrides,
    Overwrite,
    Png,
    Policy,
    Resume,
    TaskName,
    TaskOptions,
    Threads,
    finite,
    path_of,
    path_text,
)
from bgrpo.cli.problem_commands import register
from bgrpo.errors import RunError, Stopped, UserError, one_line
from bgrpo.files import FULL, LOST
from bgrpo.runs.environment import LIGHT_ENVIRONMENT
from bgrpo.runs.redaction import redacted_output, remember_secrets
from bgrpo.runs.stopping import end_of
from bgrpo.settings.spelling import nearest

INTERRUPTED, UNREAD = 130, 141
WITH_OVERRIDES = ("train", "pretrain", "sweep", "evaluate", "decode", "filter", "chaos")

app = CommandLine(
    help="Reinforcement learning with beam groups (BGRPO), as a service on Ray.",
    add_completion=False,
    pretty_exceptions_enable=False,
)
bench_app = CommandLine(help="Measure the speed of one part.")
app.add_typer(bench_app, name="bench")
cluster_app = CommandLine(help="An autoscaling Ray cluster on this machine, to submit to.")
app.add_typer(cluster_app, name="cluster")


@app.callback(invoke_without_command=True)
def root(show_version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    """Reinforcement learning with beam groups (BGRPO), as a service on Ray."""
    if show_version:
        try:
            print(version("bgrpo"))
        except PackageNotFoundError:
            raise UserError("bgrpo is not installed: pip install -e . in the repository") from None
        raise typer.Exit


@app.command()
def train(
    overrides: Overrides = None,
    config: ConfigName = None,
    resume: Resume = None,
    submit: Annotated[
        str | None, typer.Option("--submit", metavar="URL", help="Run as a job on the Ray cluster with this dashboard.")
    ] = None,
    local: Annotated[
        bool, typer.Option("--local", help="Train in this process, without Ray: one learner, the same result.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Train a policy by reinforcement learning; with --submit, on a cluster, following the job's log."""
    from bgrpo.cli.train import submit_training, train_policy

    if submit is not None and local:
        raise UserError("--local trains in this process, --submit on a cluster: give one of them")
    if submit is not None:
        return submit_training(submit, config, overrides or [], resume, as_json)
    return train_policy(config, overrides or [], resume, as_json, local)


@app.command()
def sweep(
    overrides: Overrides = None,
    config: ConfigName = None,
    resume: Annotated[
        str | None, typer.Option("--resume", parser=path_text, metavar="SWEEP", help="Go on with this sweep.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="With --resume: run failed trials again, from their checkpoints.")
    ] = False,
    submit: Annotated[
        str | None, typer.Option("--submit", metavar="URL", help="Run as a job on the Ray cluster with this dashboard.")
    ] = None,
    max_concurrent: Annotated[
        int | None,
        typer.Option("--max-concurrent", min=1, max=MANY, help="Trials at a time; default: as many as have room."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Compare algorithms: the same budget and number of trials for each, fresh seeds for the best, and a report."""
    from bgrpo.cli.train import submit_sweep, sweep_arms

    given = [*(overrides or []), *([] if max_concurrent is None else [f"max_concurrent={max_concurrent}"])]
    if retry_failed and resume is None:
        raise UserError("--retry-failed needs --resume SWEEP: a new sweep has no failed trials")
    if submit is not None:
        return submit_sweep(submit, config, given, resume, retry_failed, as_json)
    return sweep_arms(config, given, resume, retry_failed, as_json)


@app.command()
def pretrain(overrides: Overrides = None, config: ConfigName = None, resume: Resume = None) -> int:
    """Train a policy by supervision, from generated or given problems."""
    from bgrpo.cli.train import pretrain_policy

    return pretrain_policy(config, overrides or [], resume)


@app.command()
def evaluate(
    overrides: Overrides = None,
    policy: Policy = "shipped",
    before: Annotated[
        str | None,
        typer.Option("--before", parser=path_text, metavar="NAME", help="Another policy, to compare with."),
    ] = None,
    data: Annotated[
        list[Path] | None,
        typer.Option(
            "--data",
            parser=path_of,
            metavar="FILE",
            help="Data file to measure on, or a folder of them; further ones may follow it.",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=path_of, metavar="DIR", help="Folder for JSON, CSV and picture; goes on there."),
    ] = None,
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            parser=path_text,
            metavar="NAME",
            help="Says task, judge and test problems; quickstart when there is no --data.",
        ),
    ] = None,
    task: TaskName = None,
    task_option: TaskOptions = None,
    problems: Annotated[
        int | None, typer.Option("--problems", min=1, max=MANY, help="At most so many problems.")
    ] = None,
    beam_width: Annotated[
        list[int] | None, typer.Option("--beam-width", min=1, max=10**5, help="Width of beam@k; may be repeated.")
    ] = None,
    samples: Annotated[
        int | None, typer.Option("--samples", min=0, max=10**5, help="Samples per problem for pass@k; 0: none.")
    ] = None,
    temperature: Annotated[
        float | None,
        typer.Option("--temperature", min=0.001, max=1000, callback=finite, help="Of the samples; default: 1."),
    ] = None,
    max_new_tokens: NewTokens = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the samples.")] = None,
    threads: Threads = 0,
    answers: Annotated[
        Path | None,
        typer.Option(
            "--answers",
            parser=path_of,
            metavar="FILE",
            help="Write greedy answers there as JSON lines, and measure them as texts: overlap, perplexity, diversity.",
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the results in --out or --answers.")] = False,
    as_json: AsJson = False,
) -> int:
    """Measure a policy: greedy, beam@k, pass@k and beam-rank score with 95 % intervals, and by category.

    --config runs/RUN/config.yaml judges as that run did; widths, samples and seed come from it too, unless given.
    Of several files there is one table. With --out an interrupted evaluation goes on where it was.
    """
    from bgrpo.cli.measure import Decoding, evaluate_policy, refuse_both
    from bgrpo.cli.task_options import task_overrides

    words = overrides or []
    options = {"evaluation.beam_widths": beam_width, "evaluation.samples": samples, "seed": seed}
    names = {"evaluation.beam_widths": "--beam-width", "evaluation.samples": "--samples", "seed": "--seed"}
    refuse_both({key: names[key] for key, value in options.items() if value is not None}, words)
    files = [*(data or []), *(Path(word) for word in words if "=" not in word and data)]
    given = [*task_overrides(task, task_option or []), *(word for word in words if "=" in word or not data)]
    given += [] if temperature is None else [f"evaluation.temperature={temperature}"]
    chosen = "quickstart" if config is None and not files and task is None else config
    decoding = Decoding.chosen(policy, chosen, given, max_new_tokens, threads)
    if answers is not None:
        if len(files) > 1 or out is not None or before is not None:
            raise UserError("evaluate: --answers is for one data file and one policy: leave out --out and --before")
        from bgrpo.cli.answers import evaluate_answers

        return evaluate_answers(decoding, files[0] if files else None, problems, answers, overwrite, as_json)
    if len(files) < 2 and out is None and before is None and not any(path.is_dir() for path in files):
        return evaluate_policy(decoding, files[0] if files else None, problems, beam_width, samples, seed, as_json)
    if not files:
        raise UserError("evaluate: --out and --before measure on data files: give --data FILE")
    from bgrpo.cli.evaluate_files import Asked, evaluate_files

    section = decoding.config.evaluation
    asked = Asked(
        beam_width or section.beam_widths,
        section.samples if samples is None else samples,
        decoding.config.seed if seed is None else seed,
        problems,
    )
    return evaluate_files(decoding, before, files, asked, out, overwrite, as_json)


@app.command()
def decode(
    data: DataFile,
    out: Annotated[Path, typer.Option("--out", parser=path_of, metavar="FILE", help="JSON lines to write.")],
    overrides: Overrides = None,
    policy: Policy = "shipped",
    config: ConfigName = None,
    task: TaskName = None,
    task_option: TaskOptions = None,
    beam_width: Annotated[int, typer.Option("--beam-width", min=1, max=10**5, help="Completions per problem.")] = 10,
    limit: Annotated[int | None, typer.Option("--limit", min=1, max=10**9, help="At most so many problems.")] = None,
    max_new_tokens: NewTokens = None,
    batch: Annotated[int, typer.Option("--batch", min=1, max=MANY, help="Problems decoded at once.")] = 64,
    threads: Threads = 0,
    overwrite: Overwrite = False,
) -> int:
    """Write the judged beams of every problem of a file, best first."""
    from bgrpo.cli.measure import Decoding, decode_file
    from bgrpo.cli.task_options import task_overrides

    given = [*task_overrides(task, task_option or []), *(overrides or [])]
    decoding = Decoding.chosen(policy, config, given, max_new_tokens, threads)
    return decode_file(decoding, data, out, beam_width, limit, batch, overwrite)


@app.command()
def verify(data: DataFile, task: TaskName = None, task_option: TaskOptions = None, as_json: AsJson = False) -> int:
    """Check every line's own answer."""
    from bgrpo.cli.data import verify_data
    from bgrpo.cli.task_options import named_task

    return verify_data(named_task(task, task_option or []), data, as_json)


@app.command(
    "generate-data",
    cls=GeneratorCommand,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)
def generate_data(
    context: typer.Context,
    count: Annotated[int, typer.Option("--count", min=1, max=10**9, help="How many problems.")],
    out: Annotated[Path, typer.Option("--out", parser=path_of, metavar="FILE", help="Data file to write.")],
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="The same seed gives the same file.")] = 0,
    workers: Annotated[
        int, typer.Option("--workers", min=1, max=1024, help="Processes; the file does not depend on it.")
    ] = 1,
    exclude: Annotated[
        list[Path] | None,
        typer.Option(
            "--exclude", parser=path_of, metavar="FILE", help="Leave out the problems of this file; may be repeated."
        ),
    ] = None,
    task: TaskName = None,
    task_option: TaskOptions = None,
    overwrite: Overwrite = False,
) -> int:
    """Write random problems with their answers, exact, distinct, and the same for the same seed.

    Further options, --KEY VALUE, are the task's generator's.
    """
    from bgrpo.cli.data import generate_problems
    from bgrpo.cli.task_options import named_task

    chosen = named_task(task, task_option or [])
    return generate_problems(chosen, context.args, count, seed, out, workers, exclude or [], overwrite)


@app.command("reward-model")
def reward_model(
    train: Annotated[
        Path | None,
        typer.Option(
            "--train",
            parser=path_of,
            metavar="PAIRS",
            help="JSON lines with prompt, chosen, rejected; weight and margin.",
        ),
    ] = None,
    base: Annotated[
        str | None, typer.Option("--base", parser=path_text, help="Encoder or decoder to train: directory or model id.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", parser=path_of, metavar="DIR", help="Where the trained model goes.")
    ] = None,
    held_out: Annotated[
        Path | None,
        typer.Option("--held-out", parser=path_of, metavar="FILE", help="Pairs to measure on; default: a share."),
    ] = None,
    held_out_share: Annotated[
        float,
        typer.Option(
            "--held-out-share",
            min=0.001,
            max=0.999,
            callback=finite,
            help="Share of the pairs to measure on, not to learn from.",
        ),
    ] = 0.1,
    group_by: Annotated[
        str | None, typer.Option("--group-by", metavar="COLUMN", help="Pairs alike in this column stay on one side.")
    ] = None,
    epochs: Annotated[
        float, typer.Option("--epochs", min=0.001, max=MANY, callback=finite, help="Passes over the pairs.")
    ] = 1.0,
    max_steps: Annotated[int, typer.Option("--max-steps", min=0, max=MANY, help="At most so many steps; 0: all.")] = 0,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, max=MANY, help="Pairs in a step.")] = 16,
    learning_rate: Annotated[
        float, typer.Option("--learning-rate", min=1e-30, max=10, callback=finite, help="The highest.")
    ] = 5e-5,
    seed: Annotated[
        int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the head, the order and the held-out share.")
    ] = 0,
    serve: Annotated[
        str | None,
        typer.Option(
            "--serve", parser=path_text, metavar="MODEL", help="Answer over HTTP on 127.0.0.1 with this model."
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of --serve; 0: a free one.")] = 8500,
    label: Annotated[str | None, typer.Option("--label", help="Of --serve: the output that counts.")] = None,
    truncate: Annotated[str, typer.Option("--truncate", help="Of --serve: refuse or cut texts too long.")] = "refuse",
    dtype: Annotated[str, typer.Option("--dtype", help="Of --serve: fp32 or bf16.")] = "fp32",
    device: Annotated[str, typer.Option("--device", help="Of --serve: cpu, cuda, cuda:1.")] = "cpu",
    separator: Annotated[
        str, typer.Option("--separator", help="Of --serve: between the texts, without a chat template.")
    ] = "",
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", min=1, max=MANY, help="Longest text; default: what the model takes.")
    ] = None,
    threads: Threads = 0,
    as_json: AsJson = False,
) -> int:
    """Train a reward model on preference pairs (--train), or answer with one over HTTP (--serve)."""
    from bgrpo.cli.reward_model import TrainingRequest, serve_reward_model, train_reward

    if (train is None) == (serve is None):
        raise UserError("reward-model: give --train PAIRS --base MODEL --out DIR, or --serve MODEL")
    if serve is not None:
        options = {"label": label, "max_tokens": max_tokens, "truncate": truncate, "dtype": dtype}
        return serve_reward_model(serve, port, threads, {**options, "device": device, "separator": separator})
    if train is None or base is None or out is None:
        raise UserError("reward-model --train needs --base MODEL and --out DIR")
    request = TrainingRequest(train, base, out, held_out, held_out_share, group_by, threads)
    plan = {"epochs": epochs, "max_steps": max_steps, "batch_size": batch_size, "max_tokens": max_tokens}
    return train_reward(request, {**plan, "learning_rate": learning_rate, "seed": seed}, as_json)


@app.command()
def report(
    name: Annotated[
        str, typer.Argument(parser=path_text, metavar="RUN_OR_SWEEP", help="Name or folder of a run or of a sweep.")
    ],
    runs: Annotated[
        Path, typer.Option("--runs", parser=path_of, metavar="DIR", help="Folder of all runs and sweeps.")
    ] = Path("runs"),
    as_json: AsJson = False,
) -> int:
    """Make the report of a sweep, or of a run, again from its folder alone; while it runs too."""
    from bgrpo.cli.measure import rebuild_report

    return rebuild_report(name, runs, as_json)


@app.command()
def options(
    prefix: Annotated[str, typer.Argument(metavar="[PREFIX]", help="Only keys that begin so, as learner.")] = "",
    of: Annotated[
        Literal["train", "pretrain", "sweep"], typer.Option("--for", help="The command whose keys are listed.")
    ] = "train",
    as_json: AsJson = False,
) -> int:
    """List configuration keys: what each takes, its default, and what it is."""
    from bgrpo.cli.key_list import list_keys

    return list_keys(of, prefix, as_json)


@app.command()
def show(
    name: Annotated[str, typer.Argument(parser=path_text, metavar="RUN", help="Name or folder of a run.")],
    runs: Annotated[Path, typer.Option("--runs", parser=path_of, metavar="DIR", help="Folder of all runs.")] = Path(
        "runs"
    ),
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="Of 127.0.0.1; 0: a free one.")] = 0,
    serve: Annotated[bool, typer.Option("--serve/--no-serve", help="Serve the page, or only write it.")] = True,
    out: Annotated[
        Path | None,
        typer.Option("--out", parser=path_of, metavar="DIR", help="Folder of the page; default: show in the run's."),
    ] = None,
) -> int:
    """Browse what the policy wrote: a local page of steps, problems and groups, as trees of beams with their scores."""
    from bgrpo.cli.show import show_run

    return show_run(name, runs, out, port, serve)


@app.command()
def export(
    name: Annotated[
        str, typer.Argument(parser=path_text, metavar="RUN", help="Name or folder of a run, or of a policy.")
    ],
    out: Annotated[Path, typer.Option("--out", parser=path_of, metavar="DIR", help="Folder to write.")],
    runs: Annotated[Path, typer.Option("--runs", parser=path_of, metavar="DIR", help="Folder of all runs.")] = Path(
        "runs"
    ),
    merge: Annotated[
        bool, typer.Option("--merge", help="Write a LoRA adapter merged into its base, as one model.")
    ] = False,
) -> int:
    """Write a run's policy in Hugging Face format, a LoRA adapter in peft's; with --merge always a whole model."""
    from bgrpo.cli.export import export_policy

    return export_policy(name, runs, out, merge)


@app.command()
def chaos(
    overrides: Overrides = None,
    config: ConfigName = None,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            min=0.1,
            max=10**5,
            callback=finite,
            help="Length of the disturbed run, about; default: the configured steps.",
        ),
    ] = None,
    every: Annotated[
        str, typer.Option("--every", metavar="S,S", help="Shortest and longest gap in seconds.")
    ] = "20,40",
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**32 - 1, help="Of the schedule of faults.")] = 1,
    faults: Annotated[
        str | None,
        typer.Option(
            "--faults",
            metavar="KINDS",
            help="Of kill-rollout, stop-rollout, kill-verifier, kill-check, kill-learner, kill-service, kill-driver, "
            "terminate-driver (the default: all of these), remove-node; separated by commas.",
        ),
    ] = None,
    max_faults: Annotated[
        int | None, typer.Option("--max-faults", min=1, max=MANY, help="End with so many; default: until the run ends.")
    ] = None,
    undisturbed: Annotated[
        str | None,
        typer.Option(
            "--undisturbed", parser=path_text, metavar="RUN", help="Compare with this finished run; default: make one."
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Inject faults into a run, and check that its result is that of an undisturbed one. Exit status 1 when not."""
    from bgrpo.chaos.schedule import Schedule, parse_every, parse_kinds
    from bgrpo.cli.chaos import run_chaos_command

    schedule = Schedule(seed, parse_every(every), parse_kinds(faults), max_faults)
    return run_chaos_command(config, overrides or [], schedule, minutes, undisturbed, as_json)


@app.command()
def doctor(
    overrides: Overrides = None,
    config: ConfigName = None,
    runs: Annotated[
        Path, typer.Option("--runs", parser=path_of, metavar="DIR", help="Folder where runs are to live.")
    ] = Path("runs"),
    ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Also start a private Ray for a moment.")] = True,
    probe: Annotated[
        bool,
        typer.Option("--probe/--no-probe", help="With a configuration: try for up to a minute how long a step takes."),
    ] = True,
    as_json: AsJson = False,
) -> int:
    """Is this machine fit to train? With a configuration: what memory and time the run needs here.

    Exit status 1 when something must be mended first, or the run does not fit.
    """
    if config is not None or overrides:
        from bgrpo.cli.doctor_config import examine_config

        return examine_config(config, overrides or [], probe, as_json)
    from bgrpo.cli.doctor import examine_machine

    return examine_machine(runs, ray, as_json)


@bench_app.command("step")
def bench_step(
    part: Annotated[
        list[str] | None,
        typer.Option("--part", help="Only this part: learner, sharing or run; may be repeated. Default: all."),
    ] = None,
    png: Png = None,
    as_json: AsJson = False,
) -> int:
    """Where a training step's time goes, next to bare PyTorch, padded rows and the matrix products alone."""
    from bgrpo.cli.bench import measure_step

    return measure_step(part or [], png, as_json)


@bench_app.command("task")
def bench_task(
    seconds: Annotated[
        float, typer.Option("--seconds", min=0.1, max=MANY, callback=finite, help="Time for each measurement.")
    ] = 3.0,
    task: TaskName = None,
    task_option: TaskOptions = None,
    as_json: AsJson = False,
) -> int:
    """Microseconds per check and generated problems per second, on one core."""
    from bgrpo.cli.bench import measure_task
    from bgrpo.cli.task_options import named_task

    return measure_task(named_task(task, task_option or []), seconds, as_json)


@bench_app.command("rollouts")
def bench_rollouts(
    case: Annotated[
        list[str] | None,
        typer.Option("--case", help="Name of a case, or standard (the default), extra, language-models."),
    ] = None,
    engine: Annotated[
        list[str] | None, typer.Option("--engine", help="Only this engine; may be repeated. Default: all.")
    ] = None,
    threads: Annotated[int, typer.Option("--threads", min=1, max=1024, help="Threads of every engine.")] = 1,
    rounds: Annotated[int, typer.Option("--rounds", min=1, max=MANY, help="Turns of every engine.")] = 5,
    seconds: Annotated[
        float,
        typer.Option(
            "--seconds",
            min=0,
            max=MANY,
            callback=finite,
            help="An engine leaves out rounds beyond this; 0: one round.",
        ),
    ] = 60.0,
    longest: Annotated[
        float,
        typer.Option(
            "--longest",
            min=0.1,
            max=MANY,
            callback=finite,
            help="Engines slower than this for one decode are left out, and said.",
        ),
    ] = 300.0,
    memory: Annotated[str, typer.Option("--memory", help="Peak memory of cases: largest, all or none.")] = "largest",
    png: Png = None,
    as_json: AsJson = False,
) -> int:
    """Completions per second, side by side with other engines, the measured floor, and peak memory."""
    from bgrpo.cli.bench import measure_rollouts

    return measure_rollouts(case, engine, threads, rounds, seconds, longest, memory, png, as_json)


@bench_app.command("scaling")
def bench_scaling(
    png: Png = None,
    as_json: AsJson = False,
) -> int:
    """Completions per second of 1 and 2 rollout actors, measured, and of up to 256 on 32 nodes, simulated."""
    from bgrpo.cli.bench import measure_scaling

    return measure_scaling(png, as_json)


@bench_app.command("advantages")
def bench_advantages(
    groups: Annotated[int, typer.Option("--groups", min=10, max=MANY, help="Groups that each figure rests on.")] = 4000,
    png: Png = None,
    as_json: AsJson = False,
) -> int:
    """Bias and spread of what each advantage estimates, on a small policy whose gradient is known."""
    from bgrpo.cli.bench import measure_advantages

    return measure_advantages(groups, png, as_json)


@cluster_app.command("local")
def cluster_local(
    max_nodes: Annotated[int, typer.Option("--max-nodes", min=2, max=10**4, help="Most nodes, the head included.")] = 3,
    cpus_per_node: Annotated[
        int,
        typer.Option(
            "--cpus-per-node", min=1, max=10**4, help="CPUs that each node offers; all share this machine's cores."
        ),
    ] = 2,
    idle_minutes: Annotated[
        float,
        typer.Option(
            "--idle-minutes", min=0.05, max=10**5, callback=finite, help="A node without work leaves after so long."
        ),
    ] = 1.0,
    dashboard_port: Annotated[
        int, typer.Option("--dashboard-port", min=1024, max=65535, help="Of the dashboard and job server.")
    ] = 8265,
) -> int:
    """Start a cluster on 127.0.0.1 with a token; nodes join when work waits for room, and leave when idle."""
    from bgrpo.cli.cluster import LocalClusterOptions, start_local_cluster

    return start_local_cluster(LocalClusterOptions(max_nodes, cpus_per_node, idle_minutes, dashboard_port))


@cluster_app.command("status")
def cluster_status(as_json: AsJson = False) -> int:
    """Show the local cluster's nodes and jobs. Exit status 1 when none runs."""
    from bgrpo.cli.cluster import show_local_cluster

    return show_local_cluster(as_json)


@cluster_app.command("down")
def cluster_down(
    now: Annotated[bool, typer.Option("--now", help="Do not wait for jobs to save a checkpoint.")] = False,
) -> int:
    """End the local cluster and everything that runs on it."""
    from bgrpo.cli.cluster import end_local_cluster

    return end_local_cluster(now)


register(app)

_UsageError: Any = typer.BadParameter.__bases__[0]  # click's, or typer's own copy of it from 0.29 on


def main(arguments: list[str] | None = None) -> int:
    """Run a command line; returns the exit status. A user's error is one line, a failed run its first cause."""
    given = sys.argv[1:] if arguments is None else arguments
    _open_missing_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what the encoding lacks is shown as \\u2047
            stream.reconfigure(errors="backslashreplace")
    try:
        here = str(Path.cwd())
    except OSError as error:
        print(
            f"error: the current folder cannot be used ({error.strerror}): change into one that is there",
            file=sys.stderr,
        )
        return 2
    if arguments is None:
        sys.path.append(here)  # a user's tasks and reward functions are found here, as with python -m
        for name, value in LIGHT_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    remember_secrets(given)
    with redacted_output():
        status = _flushed(given)
    return end_of(status) if arguments is None else status


def _open_missing_streams() -> None:
    """Standard streams that were closed (``>&-``) are nothing to read or write, and no file gets their numbers."""
    for number, (name, mode) in enumerate({"stdin": "r", "stdout": "w", "stderr": "w"}.items()):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            try:
                os.fstat(number)
            except OSError:
                os.dup2(opened, number)
            setattr(sys, name, os.fdopen(opened, mode, encoding="utf-8"))


def _flushed(given: list[str]) -> int:
    """The exit status, once everything is printed, or nobody reads it."""
    try:
        status = _run(given)
        sys.stdout.flush()
    except (OSError, SystemExit) as error:  # typer makes the second of a broken pipe
        if isinstance(error, BrokenPipeError | SystemExit) and _nobody_reads():
            status, message = UNREAD, ""
        elif isinstance(error, OSError) and error.errno in FULL:
            status, message = 1, f"error: what is to be written has no room ({error})"
        elif isinstance(error, OSError) and error.errno in LOST and isinstance(error.filename, str | os.PathLike):
            path = one_line(os.fspath(error.filename), 300)
            mend = "see to it that it is there, and that this user may read and write it"
            print(f"error: {path}: {error.strerror}: {mend}", file=sys.stderr)
            return 2
        else:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # the interpreter tries again when it ends
        if message:
            print(message, file=sys.stderr)
    return status


def _nobody_reads() -> bool:
    """Whether standard output or error is a pipe whose other end is closed."""
    ends = select.poll()
    for descriptor in (1, 2):
        ends.register(descriptor, 0)
    return any(event & select.POLLERR for _, event in ends.poll(0))


@cache
def _commands() -> Any:
    """All commands; made once, since making them takes most of what it takes to read a command line."""
    return typer.main.get_command(app)


def _run(given: list[str]) -> int:
    try:
        return _commands()(given or ["--help"], prog_name="bgrpo", standalone_mode=False) or 0
    except UserError as error:
        message, status = str(error), 2
    except RunError as error:
        message, status = str(error), 1
    except Stopped as stop:
        message, status = f"ended by {stop.name}", stop.status
    except _UsageError as error:
        command = error.ctx.command_path if error.ctx is not None else "bgrpo"
        message, status = f"{_usage_message(error, given)} (see {command} --help)", 2
    except (typer.Abort, KeyboardInterrupt):  # newer typer returns this status itself
        return INTERRUPTED
    print(f"error: {message}", file=sys.stderr)
    return status


def _usage_message(error: Any, given: list[str]) -> str:
    """What is wrong with a command line. A configuration key that was given as an option is told how it is written."""
    option = getattr(error, "option_name", None)
    if not hasattr(error, "possibilities") or option is None:
        return one_line(error.format_message(), 500)
    key, command = option.lstrip("-").replace("-", "_"), given[0]
    from bgrpo.cli.key_list import is_key

    if command in WITH_OVERRIDES and is_key(key, command if command in ("pretrain", "sweep") else "train"):
        following = given[given.index(option) + 1 :] if option in given else []
        return f"No such option: {option}: a configuration key has no dashes, as in {key}={(following or ['…'])[0]}"
    error.possibilities = [other for other in error.possibilities or [] if nearest(option, [other])]
    return one_line(error.format_message(), 500)


if __name__ == "__main__":
    sys.exit(main())
