"""Arguments that several commands share. Nothing heavy is imported here: parsing must be quick."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from bgrpo.errors import UserError
from bgrpo.settings.paths import expanded

MANY = 10**6


def path_text(text: str) -> str:
    """An option's path, ``~`` expanded."""
    try:
        return expanded(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def path_of(text: str) -> Path:
    return Path(path_text(text))


def finite(number: float | None) -> float | None:
    """Bounds let nan pass: it is neither below nor above them."""
    if number is not None and not math.isfinite(number):
        raise typer.BadParameter(f"{number} is not a finite number")
    return number


Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Dotted overrides, for example rollout.group_size=20. Every key: bgrpo options.",
    ),
]
ConfigName = Annotated[
    str | None,
    typer.Option("--config", parser=path_text, metavar="NAME", help="Name of a shipped configuration, or a YAML file."),
]
Resume = Annotated[str | None, typer.Option("--resume", parser=path_text, metavar="RUN", help="Go on with this run.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the file if it is there.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
DataFile = Annotated[
    Path, typer.Option("--data", parser=path_of, metavar="FILE", help="Data file, one problem per line.")
]
Policy = Annotated[
    str,
    typer.Option(
        "--policy", parser=path_text, metavar="NAME", help="'shipped', a directory, or a Hugging Face model id."
    ),
]
TaskName = Annotated[
    str | None, typer.Option("--task", metavar="NAME", help="A shipped task, or module:Class; default: as configured.")
]
TaskOptions = Annotated[
    list[str] | None,
    typer.Option("--task-option", metavar="KEY=VALUE", help="Argument of the task; may be repeated."),
]
NewTokens = Annotated[
    int | None,
    typer.Option(
        "--max-new-tokens", min=1, max=MANY, help="Longest answer in tokens; default: the configuration's, or 64."
    ),
]
Png = Annotated[Path | None, typer.Option("--png", parser=path_of, metavar="FILE", help="Also draw a picture.")]
Threads = Annotated[int, typer.Option("--threads", min=0, max=1024, help="Torch threads; 0: one per core.")]


class Command(TyperCommand):
    """A command that refuses an option given twice, of which the last would count without a word."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """The parser says which options came, each as often as it was given."""
        if not ctx.resilient_parsing:
            _, _, given = self.make_parser(ctx).parse_args(args=list(args))
            for option, count in Counter(given).items():
                if count > 1 and not getattr(option, "multiple", False):
                    raise UserError(f"{option.opts[0]} is given {count} times: give it once")
        return super().parse_args(ctx, args)


class CommandLine(typer.Typer):
    """Commands that are :class:`Command` where nothing else is said."""

    def command(self, name: str | None = None, *, cls: type[TyperCommand] | None = None, **options: Any) -> Any:
        """See :meth:`typer.Typer.command`."""
        return super().command(name, cls=cls or Command, **options)


class _TaskCommand(Command):
    """A command with further options, which are the task's; its help lists them."""

    heading = ""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Where help is asked for, the task that it is about is found first, wherever it stands."""
        others = [word for word in args if word not in ctx.help_option_names]
        if len(others) == len(args):
            return super().parse_args(ctx, args)
        ctx.resilient_parsing = True  # what else is missing or wrong does not matter
        super().parse_args(ctx, others)
        print(self.get_help(ctx))
        raise typer.Exit

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Help with the options of the task at the end."""
        from bgrpo.cli.task_options import named_task

        task = named_task(ctx.params.get("task"), ctx.params.get("task_option") or [])
        lines = [f"--{key}: {text}" for key, text in self.listed(task).items()]
        self.epilog = "\n\n".join([self.heading.format(repr(task.name)), *lines])
        super().format_help(ctx, formatter)

    def listed(self, task: Any) -> dict[str, str]:
        """The task's options, each with a line of help."""
        raise NotImplementedError


class GeneratorCommand(_TaskCommand):
    """A command whose further options are those of the task's generator."""

    heading = "Options of the generator of task {}:"

    def listed(self, task: Any) -> dict[str, str]:
        """What its ``generator_help`` gives."""
        from bgrpo.cli.task_options import checked_ability

        return checked_ability(task, "generator_help", "this help", dict[str, str])()


class SelectionCommand(_TaskCommand):
    """A command whose further options are the quantities of the task's problems."""

    heading = "What task {} tells of its problems, each with a RANGE as 4, 2-4, 2- or -4:"

    def listed(self, task: Any) -> dict[str, str]:
        """What its ``quantities`` gives."""
        from bgrpo.tasks.data_streams import quantities_of

        return quantities_of(task)[0] or {"": "nothing: select by category, length, answer or policy"}
