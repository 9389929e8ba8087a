"""``bgrpo.decode`` and ``bgrpo.evaluate``: what a policy writes, and how good that is."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path

from bgrpo.api.given import Given, Problems, Rewards, is_task_name
from bgrpo.api.policy import LARGEST_SEED, MAX_NEW_TOKENS, AllowedLike, PolicyLike, Prompt, load_policy, whole
from bgrpo.api.run import as_text
from bgrpo.api.training import Keys, check_keys, names_task, split_config
from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.evaluation.metrics import Evaluation, Measures
from bgrpo.groups import Group, Search
from bgrpo.runs.run_folder import RunFolder, load_new_config
from bgrpo.scoring.failed_checks import truncation
from bgrpo.tasks.base import Problem, load_file, load_task
from bgrpo.tasks.splits import load_test

WIDEST, MOST_SAMPLES = 10**5, 10**5


class PolicyEvaluation(Evaluation):
    """Values of each metric, problem by problem, with means, intervals and tables."""

    def table(self) -> str:
        """Metrics with 95 % intervals, by category, and the outcomes of each search."""
        from bgrpo.display.run_report import evaluation_tables

        return as_text(*evaluation_tables(self, "evaluation"), *self.failures())


def decode(
    policy: PolicyLike,
    prompts: Prompt | Sequence[Prompt],
    search: Search = "beam",
    group_size: int = 10,
    max_new_tokens: int = MAX_NEW_TOKENS,
    seed: int = 0,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    stop: str | Sequence[str] = (),
    min_new_tokens: int = 0,
    banned_tokens: Sequence[int | str] = (),
    allowed: AllowedLike | None = None,
    beam_groups: int = 0,
    diversity: float = 0.5,
) -> list[Group]:
    """A group of completions for each prompt.

    Args:
        policy: ``"shipped"``, a folder, a model id of the Hugging Face Hub; what :func:`bgrpo.load_policy` gave, which
            spares loading it again; or a model of transformers with its tokenizer.
        prompts: one or several, each a text; a chat, which the policy's template renders; or token ids as they stand.
        search: ``beam`` for the most probable completions, best first and all distinct; ``sample`` for independent
            ones; ``stochastic_beam`` for distinct ones, drawn without replacement; ``diverse_beam`` for groups of beams
            that avoid each other's tokens.
        group_size: K, completions of each prompt; fewer beams only where fewer sequences exist.
        max_new_tokens: longest completion, end token included.
        seed: of what is drawn; each prompt's completions depend on the seed and its position alone.
        temperature: of what is drawn; beams are searched at 1.
        top_p: draw samples from the fewest most probable tokens that have this probability together.
        top_k: draw samples from so many most probable tokens; 0: from all.
        min_p: draw samples from tokens at least so probable, as a part of the most probable one's probability.
        stop: a text, or several, each of which ends a completion; ``text`` is what comes before.
        min_new_tokens: tokens before an end token may come or a stop text may be completed.
        banned_tokens: that no completion holds: ids, names in the vocabulary, or texts that are one token.
        allowed: the only completions there may be, as texts; or a function that is given the token ids of a prompt and
            of its completion so far, and returns the ids that may follow, the end token among them where it may end.
            Allowed tokens share the whole probability, and log-probabilities are those.
        beam_groups: of ``diverse_beam``, a divisor of ``group_size``; 0: as many, one beam each.
        diversity: of ``diverse_beam``: nats that a token loses for each beam of earlier groups that has it there.

    Returns:
        For each prompt its group: ``prompt_ids``, and ``completions`` with ``tokens``, ``logprobs``, ``logprob``,
        ``text`` and ``finished``; of samples from a part of the distribution ``sampled_logprobs`` in that part; drawn
        without replacement also ``key``, its log-probability plus Gumbel noise, and of the group ``kappa``, the largest
        key that was not drawn.

    Raises:
        UserError: what was wrong with policy, prompt or argument, in one line.
    """
    return load_policy(policy).decode(
        prompts,
        search=search,
        group_size=group_size,
        max_new_tokens=max_new_tokens,
        seed=seed,
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        stop=stop,
        min_new_tokens=min_new_tokens,
        banned_tokens=banned_tokens,
        allowed=allowed,
        beam_groups=beam_groups,
        diversity=diversity,
    )


def evaluate(
    policy: PolicyLike,
    problems: Problems | None = None,
    rewards: Rewards | None = None,
    *,
    beam_widths: Sequence[int] | None = None,
    samples: int | None = None,
    seed: int | None = None,
    max_new_tokens: int | None = None,
    config: str | PathLike[str] | Keys | None = None,
    overrides: Keys | None = None,
    progress: bool = True,
) -> PolicyEvaluation:
    """Measure a policy on problems, in this process. What is left out has the configuration's value.

    Args:
        policy: as of :func:`decode`.
        problems: as of :func:`bgrpo.train`; of a mapping of splits, ``test`` counts. The default is the
            configuration's test problems.
        rewards: as of :func:`bgrpo.train`; the default is the task's check.
        beam_widths: widths of ``beam@k``, ``best_reward@k`` and ``mean_reward@k``.
        samples: of each problem, for ``pass@k``, ``sample_reward`` and ``best_of@k``; 0: none.
        seed: of the samples and intervals.
        max_new_tokens: longest completion, end token included.
        config: a run's ``config.yaml``, a shipped configuration, or configuration keys.
        overrides: further configuration keys.
        progress: show it.

    Returns:
        The metrics, see :mod:`bgrpo.evaluation.metrics`; ``print(result.table())`` shows them.

    Raises:
        UserError: what was wrong with an argument, in one line.
    """
    from bgrpo.display.terminal import progress_bar
    from bgrpo.evaluation.metrics import evaluate as measure
    from bgrpo.training.measuring import judged_decoder

    loaded_policy = load_policy(policy)
    base, keys = split_config(config)
    given = Given(keys=keys | check_keys("overrides", overrides))
    with tempfile.TemporaryDirectory(prefix="bgrpo-evaluation-") as folder, given.in_their_words():
        task_is_named = names_task(base, given.keys)
        given.add_problems(_as_test(problems), task_is_named)
        given.add_rewards(rewards)
        settings = load_new_config(TrainConfig, base, [], given.keys)
        if given.functions or given.rows:
            place = settings.run.model_copy(update={"dir": folder, "name": "evaluation"})
            here = RunFolder.create(settings.model_copy(update={"run": place}), None)
            settings = given.write(here, settings)
        section = settings.evaluation
        widths = section.beam_widths if beam_widths is None else _widths(beam_widths)
        drawn = section.samples if samples is None else whole("samples", samples, 0, MOST_SAMPLES)
        chosen_seed = settings.seed if seed is None else whole("seed", seed, 0, LARGEST_SEED)
        longest = settings.rollout.max_new_tokens if max_new_tokens is None else max_new_tokens
        found = _test_problems(settings)
        where = settings.task.test.file or "task.test"
        new = whole("max_new_tokens", longest, 1)
        decoder = judged_decoder(
            loaded_policy.loaded,
            settings,
            found,
            new,
            where,
            "max_new_tokens",
            lambda line: warnings.warn(line, stacklevel=2),
        )
        with decoder as (decoding, found), progress_bar("evaluating", shown=progress) as show:
            result = measure(decoding, found, widths, drawn, chosen_seed, Measures.of(settings), on_progress=show)
    if line := truncation(result.totals(), new, "max_new_tokens", settings.reward.scores_truncated):
        warnings.warn(line, stacklevel=2)
    return PolicyEvaluation(**vars(result))


def _as_test(problems: Problems | None) -> Problems | None:
    """Problems that are given for no split are to be measured on."""
    if problems is None or isinstance(problems, Mapping):
        return problems
    return problems if is_task_name(problems) else {"test": problems}


def _test_problems(config: TrainConfig) -> list[Problem]:
    task, source = load_task(config.task.name, config.task.options), config.task.test.file
    return load_test(task, config.task)[0] if source is None else load_file(task, Path(source)).problems


def _widths(widths: Sequence[int]) -> list[int]:
    if isinstance(widths, str | bytes) or not isinstance(widths, Sequence):
        raise UserError(f"beam_widths: is a {type(widths).__name__}: expected a list of whole numbers")
    return [whole("beam_widths", width, 1, WIDEST) for width in widths]
