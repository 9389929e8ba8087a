"""Polynomial decomposition as a task: problems from files or the generator, and the exact check."""

from __future__ import annotations

import gc
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from bgrpo.errors import UserError
from bgrpo.tasks.base import LoadedProblems, Outcome, Problem, Progress, Record
from bgrpo.tasks.polynomial.data_files import generate_file, verify_file
from bgrpo.tasks.polynomial.degrees import GRID, QUANTITIES, key_of, quantities_of, read_records
from bgrpo.tasks.polynomial.generator import generate
from bgrpo.tasks.polynomial.line_checks import checked_blocks
from bgrpo.tasks.polynomial.notation import SEPARATOR
from bgrpo.tasks.polynomial.options import GENERATOR_HELP, GeneratorOptions
from bgrpo.tasks.polynomial.verifier import Ring, check

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BAD = (Outcome.WRONG, Outcome.UNPARSEABLE)  # of a line's own answer


class PolynomialTask:
    """Implements :class:`bgrpo.tasks.base.Task`.

    Args:
        ring: where g's coefficients may lie when an answer is an inner alone: ``ZZ`` (integers) or ``QQ``.
    """

    name = "polynomial"

    def __init__(self, ring: Ring = "ZZ") -> None:
        if ring not in get_args(Ring):
            raise UserError(f"task.options.ring={ring!r}: expected ZZ (integers) or QQ (rationals)")
        self.ring: Ring = ring

    def check(self, prompt: str, completion: str) -> Outcome:
        """Outcome of an answer, see :func:`bgrpo.tasks.polynomial.verifier.check`."""
        return check(prompt, completion, self.ring)

    def load(
        self, path: Path, *, for_training: bool = False, allow_bad: bool = False, progress: Progress | None = None
    ) -> LoadedProblems:
        """Read a data file and check every line's own answer, large files by several processes.

        Lines whose own answer is trivial are dropped. Lines whose own answer is wrong or cannot be read are refused
        for training, unless ``allow_bad``; otherwise they stay, since their polynomial may yet be solved. So do lines
        that end with the separator, whose answer is not known; they count in no outcome and are refused for training.

        Raises:
            UserError: see above, and :func:`bgrpo.tasks.polynomial.data_files.read_lines`; a polynomial that cannot be
                read (with its line); or nothing is left.
        """
        outcomes: Counter[str] = Counter()
        problems: list[Problem] = []
        with _uncollected():
            for block in checked_blocks(path, self.ring, for_training, progress):
                outcomes.update(block.outcomes)
                problems += [
                    Problem(f"{expanded} {SEPARATOR}", answer, sys.intern(label), line=line)
                    for expanded, answer, label, line in block.problems
                ]
        if for_training and not allow_bad:
            _refuse_bad(path, outcomes)
        if not problems:
            raise UserError(f"{path}: no problem left: the own answers of all {outcomes.total()} lines are trivial")
        return LoadedProblems(problems, {str(outcome): n for outcome, n in outcomes.items()})

    def generate(self, options: Mapping[str, Any], count: int, seed: int, exclude: Sequence[str] = ()) -> list[Problem]:
        """Distinct problems, see :func:`bgrpo.tasks.polynomial.generator.generate`; all are correct in both rings.

        Args:
            options: of :class:`bgrpo.tasks.polynomial.options.GeneratorOptions`.
            count: how many.
            seed: of the draw.
            exclude: prompts whose polynomials must not occur, in any writing.

        Raises:
            UserError: options that do not fit, or fewer than ``count`` problems exist.
        """
        generated = generate(GeneratorOptions.from_dict(options), count, seed, exclude)
        return [Problem(item.prompt, item.answer, item.category) for item in generated]

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """Of policies trained from scratch, see :func:`bgrpo.tasks.polynomial.tokenizer.build_tokenizer`."""
        from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

        return build_tokenizer()

    def generator_help(self) -> dict[str, str]:
        """The options of :class:`bgrpo.tasks.polynomial.options.GeneratorOptions`, each with a line of help."""
        return GENERATOR_HELP

    def write_data(
        self,
        options: Mapping[str, Any],
        count: int,
        seed: int,
        out: Path,
        workers: int,
        progress: Callable[[int], None],
        exclude: Sequence[str],
    ) -> None:
        """Write a data file of generated problems, see :func:`bgrpo.tasks.polynomial.data_files.generate_file`."""
        generate_file(GeneratorOptions.from_dict(options), count, seed, out, workers, progress, exclude)

    def verify(self, path: Path, progress: Callable[[int], None]) -> dict[str, Any]:
        """Check every line's own answer, see :func:`bgrpo.tasks.polynomial.data_files.verify_file`."""
        return verify_file(path, self.ring, progress)

    def records(self, path: Path) -> Iterator[Record]:
        """Lines of a data file, unchecked, see :func:`bgrpo.tasks.polynomial.degrees.read_records`."""
        return read_records(path)

    def quantities(self) -> dict[str, str]:
        """Degrees and number of variables, see :mod:`bgrpo.tasks.polynomial.degrees`."""
        return QUANTITIES

    def quantify(self, problem: Problem) -> dict[str, int]:
        """Those of one problem, as far as its texts can be read."""
        return quantities_of(problem)

    def grid(self) -> tuple[str, str]:
        """Heat maps have outer degrees as rows and inner degrees as columns."""
        return GRID

    def problem_key(self, problem: Problem) -> str:
        """The same for the same polynomial in any writing."""
        return key_of(problem)

    def import_policy(self, weights: Path, config: Path, out: Path) -> None:
        """A minGPT checkpoint as a policy's folder, see :func:`bgrpo.tasks.polynomial.mingpt.import_mingpt`."""
        from bgrpo.tasks.polynomial.mingpt import import_mingpt

        import_mingpt(weights, config, out)

    def export_policy(self, policy: Path, weights: Path, config: Path) -> None:
        """A policy as a minGPT checkpoint, see :func:`bgrpo.tasks.polynomial.mingpt.export_mingpt`."""
        from bgrpo.tasks.polynomial.mingpt import export_mingpt

        export_mingpt(policy, weights, config)

    def measure_speed(self, seconds: float) -> dict[str, Any]:
        """See :func:`bgrpo.tasks.polynomial.speed.measure_speed`."""
        from bgrpo.tasks.polynomial.speed import measure_speed

        return measure_speed(seconds)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the search for garbage in cycles, which would look at all problems loaded so far again and again."""
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def _refuse_bad(path: Path, outcomes: Counter[str]) -> None:
    if any(outcomes[bad] for bad in _BAD):
        counts = ", ".join(
            f"{outcomes[outcome]} {outcome}" for outcome in (*_BAD, Outcome.TRIVIAL) if outcomes[outcome]
        )
        raise UserError(
            f"{path}: {counts} of {outcomes.total()} lines' own answers; mend the file, or pass "
            f"task.allow_bad_lines=true to train on it"
        )
