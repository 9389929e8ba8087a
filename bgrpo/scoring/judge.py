"""The judge of a run: from completions to verdicts and rewards, the same one in training, validation and evaluation."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

from bgrpo.config import PartSection, TrainConfig
from bgrpo.errors import UserError, one_line
from bgrpo.groups import RANKED, Group, ScoredGroup, Verdict
from bgrpo.scoring.attempts import Attempt, by_group
from bgrpo.scoring.check_process import CheckProcess
from bgrpo.scoring.failed_checks import FAILED, inapplicable
from bgrpo.scoring.kept_functions import PREFIX, kept_function
from bgrpo.scoring.rewards import LARGEST_REWARD, RewardRule, Rewards, group_rewards, ranks_by
from bgrpo.scoring.scored_text import Item, Score
from bgrpo.scoring.text_metrics import Metric, TextGroup, text_metric
from bgrpo.scoring.user_functions import columns_of
from bgrpo.tasks.base import Outcome, Problem
from bgrpo.waits import waiting

Check = Callable[[Sequence[Attempt]], Sequence[Verdict]]
"""Verdicts on attempts, in order, as :meth:`Scorer.judge` gives them."""

PartVerdicts = Mapping[str, Sequence[Verdict]]
"""Part -> one verdict per attempt, in order."""

TRIED_PROBLEMS = 32
SHIPPED_TASK_MEMORY_BYTES = 4 * 1024**3
THIS = ""  # in the verdict of one part: its own name, which it does not know
_NOT_ASKED = Verdict(Outcome.TRUNCATED)


class Judge:
    """What a configuration says about right, wrong and reward.

    Args:
        config: its sections ``task``, ``reward`` and ``verifier`` are read, and the group size.
    """

    def __init__(self, config: TrainConfig) -> None:
        reward = config.reward
        self.config = config
        self.parts: dict[str, PartSection] = reward.named_parts
        self._weights = {name: part.weight for name, part in self.parts.items()}
        self._check = next((name for name, part in self.parts.items() if part.check), None)
        self._rule = RewardRule(
            kind=config.reward_kind,
            tau=reward.tau or float(config.rollout.group_size),
            weights=None if reward.learns_from_check_alone else self._weights,
            normalize=reward.combine == "normalize_then_sum",
            wrong_reward=reward.wrong_reward,
            balance_negatives=reward.balance_negatives,
            unlikely_share=reward.unlikely_share,
        )

    def start(
        self, trial: Attempt | None, names: Collection[str] | None = None, *, tries_templates: bool = True
    ) -> Scorer:
        """What scores here: processes for the task's check and for the user's functions, metrics of text, models.

        Args:
            trial: what each is tried on, see :func:`bgrpo.scoring.attempts.trial_of`.
            names: of the parts; default: all.
            tries_templates: see ``RewardModel``.

        Raises:
            UserError: a function, task, metric, model or server is not there, or fails in its trial.
        """
        return Scorer(self, trial, self.parts if names is None else names, tries_templates)

    def check_applies(self, scorer: Scorer, problems: Sequence[Problem]) -> None:
        """Refuse a reward none of whose parts gives a score on any of several problems: nothing could be learned.

        Where the trial has given no score, problems from all over are tried until there is one: a part may well not
        apply to some. As the completion of each stand its known answer, an empty text and the prompt itself: a part may
        not apply to the answer alone.

        Args:
            scorer: of all parts.
            problems: of the run.

        Raises:
            UserError: names what gave no score.
        """
        if any(self._weights[name] for name in scorer.applies):
            return
        tried = random.Random(0).sample(problems, min(len(problems), TRIED_PROBLEMS))
        with waiting(f"{self.config.reward.described}, tried on up to {len(tried)} prompts"):
            for problem in tried:
                texts = [*filter(None, [problem.answer]), "", problem.prompt]
                verdicts = scorer.judge([Attempt(problem, text) for text in texts])
                if any(verdict.score is not None or verdict.outcome in FAILED for verdict in verdicts):
                    return
        if tried:
            known = "its known answer, " if any(problem.answer for problem in tried) else ""
            told = inapplicable(self.config.reward.described, f"any of {len(tried)} prompts that it was tried on")
            first = one_line(tried[0].prompt, 60)
            raise UserError(f"{told}. As the completion stood {known}no text, and the prompt; first prompt: {first!r}")

    def verdicts(self, attempts: Sequence[Attempt], found: PartVerdicts) -> list[Verdict]:
        """Join what the parts say about each attempt."""
        return [
            self._joined(attempt, {name: verdicts[position] for name, verdicts in found.items()})
            for position, attempt in enumerate(attempts)
        ]

    def rewards(self, verdicts: Sequence[Verdict], logprobs: Sequence[float] | None = None) -> Rewards:
        """Rewards of one group's completions, see :func:`bgrpo.scoring.rewards.group_rewards`.

        Args:
            verdicts: one per completion.
            logprobs: summed log-probability of each; default: they are in the order of it.
        """
        return group_rewards(verdicts, self._rule, None if logprobs is None else ranks_by(logprobs))

    def score(
        self, indices: Sequence[int], groups: Sequence[Group], verdicts: Iterable[Verdict], version: int
    ) -> list[ScoredGroup]:
        """Join groups with the verdicts on their completions.

        Args:
            indices: of the problems.
            groups: one per index.
            verdicts: of the completions of all groups, in order.
            version: policy version that decoded the groups.

        Raises:
            ValueError: more or fewer verdicts than completions.
        """
        return [
            ScoredGroup(
                prompt_ids=group.prompt_ids,
                completions=group.completions,
                rewards=self._rewards_of(group),
                index=index,
                version=version,
                kappa=group.kappa,
            )
            for index, group in zip(indices, with_verdicts(groups, verdicts), strict=True)
        ]

    def _rewards_of(self, group: Group) -> Rewards:
        """Beams are in the order of their log-probability; samples are not, and only the likelier counts for them."""
        logprobs = [completion.logprob for completion in group.completions]
        ranked = self.config.decode_mode in RANKED
        return self.rewards([completion.judged for completion in group.completions], None if ranked else logprobs)

    def _joined(self, attempt: Attempt, found: Mapping[str, Verdict]) -> Verdict:
        """One verdict: the check's outcome where there is a check, and the weighted sum of what could be scored."""
        values: dict[str, float | None] = {}
        failed: dict[str, Verdict] = {}
        total, scored = 0.0, False
        for name, verdict in found.items():
            values[name] = value = _value(verdict)
            if verdict.outcome in FAILED:
                failed[name] = verdict
            if value is not None and self._weights[name]:
                total, scored = total + self._weights[name] * value, True
        several = len(self.parts) > 1
        cut = tuple(name for name, verdict in found.items() if verdict.cut)
        parts = values if self.config.reward.parts else {}
        seconds = {name: verdict.seconds[THIS] for name, verdict in found.items() if THIS in verdict.seconds}
        failures = {name: verdict.detail for name, verdict in failed.items()}
        if culprit := next((name for name in failed if self._weights[name]), None):
            detail = f"{culprit}: {failed[culprit].detail}" if several else failed[culprit].detail
            return Verdict(failed[culprit].outcome, None, detail, parts, failures, cut, seconds)
        score = total if scored else None
        return Verdict(self._outcome(attempt, found, score), score, "", parts, failures, cut, seconds)

    def _outcome(self, attempt: Attempt, found: Mapping[str, Verdict], score: float | None) -> str:
        if not attempt.finished:
            asked = all(found[name].outcome != Outcome.TRUNCATED for name, weight in self._weights.items() if weight)
            return Outcome.UNSCORED if score is None and asked else Outcome.TRUNCATED
        if self._check is not None and found[self._check].outcome not in FAILED:
            return found[self._check].outcome
        if score is None:
            return Outcome.UNSCORED
        if self._check is None and (least := self.config.reward.least_correct) is not None:
            return Outcome.CORRECT if score > least else Outcome.WRONG
        return Outcome.SCORED


def _value(verdict: Verdict) -> float | None:
    """Of one part: its score, or of the task's check 1 when correct, else 0."""
    if verdict.outcome in (*FAILED, Outcome.UNSCORED, Outcome.TRUNCATED):
        return None
    return float(verdict.outcome == Outcome.CORRECT) if verdict.score is None else verdict.score


class Scorer:
    """The parts of a reward that score in this process, or in killable processes of their own beside it.

    Args:
        judge: whose parts they are.
        trial: what they are tried on.
        names: of the parts.
        tries_templates: of reward models, see :meth:`Judge.start`.

    Attributes:
        applies: names of the parts that gave the trial a score.

    Raises:
        UserError: see :meth:`Judge.start`.
    """

    def __init__(self, judge: Judge, trial: Attempt | None, names: Collection[str], tries_templates: bool) -> None:
        self.applies: list[str] = []
        self._judge = judge
        self._processes = ExitStack()
        self._parts: dict[str, Check] = {}
        with ExitStack() as stack:
            for name in names:
                part = judge.parts[name]
                if part.source in ("check", "function"):
                    process = stack.enter_context(_process(judge.config, part, trial))
                    self._parts[name], tried = process.run, process.tried
                else:
                    self._parts[name] = _check_of(judge.config, part, tries_templates)
                    tried = _try(name, self._parts[name], trial)
                if tried is not None and tried.outcome != Outcome.UNSCORED:
                    self.applies.append(name)
            self._threads = stack.enter_context(ThreadPoolExecutor(len(self._parts)))
            self._processes = stack.pop_all()

    def run(self, attempts: Sequence[Attempt]) -> dict[str, list[Verdict]]:
        """What each part says about each attempt; those that were cut off only where a part says so."""
        if len(self._parts) == 1:
            return {name: self._run(name, attempts) for name in self._parts}
        work = {name: self._threads.submit(self._run, name, attempts) for name in self._parts}
        return {name: future.result() for name, future in work.items()}

    def judge(self, attempts: Sequence[Attempt]) -> list[Verdict]:
        """The verdict on each attempt."""
        return self._judge.verdicts(attempts, self.run(attempts))

    def close(self) -> None:
        """End the processes."""
        self._processes.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self, name: str, attempts: Sequence[Attempt]) -> list[Verdict]:
        wants_all = self._judge.parts[name].score_truncated
        asked = [position for position, attempt in enumerate(attempts) if attempt.finished or wants_all]
        verdicts = [_NOT_ASKED] * len(attempts)
        start = time.perf_counter()
        found = self._parts[name]([attempts[position] for position in asked]) if asked else []
        each_s = (time.perf_counter() - start) / max(1, len(asked))
        timed = bool(self._judge.config.reward.parts)
        for position, verdict in zip(asked, found, strict=True):
            verdicts[position] = replace(verdict, seconds={THIS: each_s}) if timed else verdict
        return verdicts


def _process(config: TrainConfig, part: PartSection, trial: Attempt | None) -> CheckProcess:
    """Shipped tasks get a memory limit; a user's function or task may be a model of any size and gets none."""
    timeout_s = part.timeout_s or config.verifier.timeout_s
    if part.function is not None and part.function.startswith(PREFIX):
        path, digest = kept_function(part.function, config.run.dir, config.run.name)
        return CheckProcess(f"{PREFIX}{path}", {"digest": digest}, timeout_s, trial=trial)
    if part.function is not None:
        return CheckProcess(part.function, timeout_s=timeout_s, trial=trial)
    memory_bytes = None if ":" in config.task.name else SHIPPED_TASK_MEMORY_BYTES
    return CheckProcess(f"task:{config.task.name}", config.task.options, timeout_s, memory_bytes, trial)


def _check_of(config: TrainConfig, part: PartSection, tries_templates: bool) -> Check:
    """Of a part that runs nobody's code."""
    device = "cuda" if config.reward_model.gpus_per_actor > 0 else "cpu"
    if part.encoder is not None:
        from bgrpo.scoring.sentence_encoder import EmbeddingSimilarity

        encoder = EmbeddingSimilarity(
            part.encoder,
            max_tokens=part.max_tokens,
            truncate=part.too_long or "refuse",
            dtype=part.dtype or "fp32",
            device=device,
        )
        return _scores_check(encoder.score)
    if part.metric is not None:
        return _metric_check(text_metric(part.metric))
    if part.url is not None:
        from bgrpo.scoring.reward_server import RewardServer

        timeout_s = part.timeout_s or config.verifier.timeout_s
        return _scores_check(RewardServer(part.url, timeout_s=timeout_s, token_variable=part.token_variable).score)
    from bgrpo.scoring.reward_model import RewardModel

    model = RewardModel(
        str(part.model),
        label=part.label,
        max_tokens=part.max_tokens,
        truncate=part.too_long or "refuse",
        dtype=part.dtype or "fp32",
        device=device,
        separator=part.separator or "",
        tries_template=tries_templates,
    )
    return _scores_check(model.score)


def _try(name: str, check: Check, trial: Attempt | None) -> Verdict | None:
    """The verdict on the trial, if there is one; a part that fails on it is refused."""
    if trial is None:
        return None
    try:
        with waiting(f"reward.parts.{name}, which is tried on one prompt"):
            found = check([trial])[0]
    except MemoryError as error:
        raise UserError(f"reward.parts.{name}: {error}") from error
    if found.outcome in FAILED:
        raise UserError(
            f"reward.parts.{name}: tried on the prompt {one_line(trial.problem.prompt, 60)!r}: {found.detail}"
        )
    return found


def _scores_check(score: Callable[[Sequence[Item]], Sequence[Score]]) -> Check:
    def check(attempts: Sequence[Attempt]) -> list[Verdict]:
        items = [Item(a.problem.messages or a.problem.prompt, a.text, columns_of(a.problem), a.group) for a in attempts]
        return [_verdict(found) for found in score(items)]

    return check


def _verdict(score: Score) -> Verdict:
    cut = (THIS,) if score.cut_tokens else ()
    if score.failure:
        return Verdict(Outcome.ERROR, detail=score.failure, cut=cut)
    if score.value is None:
        return Verdict(Outcome.UNSCORED, cut=cut)
    if not abs(score.value) <= LARGEST_REWARD:  # neither is NaN
        told = f"the score is {score.value:g}, expected a finite number of at most {LARGEST_REWARD:g} in size"
        return Verdict(Outcome.ERROR, detail=told, cut=cut)
    return Verdict(Outcome.SCORED, score.value, cut=cut)


def _metric_check(metric: Metric) -> Check:
    def check(attempts: Sequence[Attempt]) -> list[Verdict]:
        verdicts = []
        for group in by_group(attempts):
            texts = TextGroup([a.text for a in group], [len(a.tokens) for a in group], group[0].problem.answers)
            verdicts += [
                Verdict(Outcome.UNSCORED) if value is None else Verdict(Outcome.SCORED, value)
                for value in metric(texts)
            ]
        return verdicts

    return check


def with_verdicts(groups: Sequence[Group], verdicts: Iterable[Verdict]) -> list[Group]:
    """The groups, each completion with its verdict.

    Raises:
        ValueError: more or fewer verdicts than completions.
    """
    remaining = iter(verdicts)
    judged = []
    for group in groups:
        completions = []
        for completion in group.completions:
            verdict = next(remaining, None)
            if verdict is None:
                raise ValueError("fewer verdicts than completions")
            completions.append(replace(completion, verdict=verdict))
        judged.append(replace(group, completions=completions))
    if next(remaining, None) is not None:
        raise ValueError("more verdicts than completions")
    return judged
