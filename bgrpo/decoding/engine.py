"""Decoding of whole requests: checks, batches, and groups in the order of the prompts."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from transformers import PreTrainedModel

from bgrpo.decoding.allowed_chooser import AllowedChooser
from bgrpo.decoding.batch_search import BatchSearch, TreeSearch
from bgrpo.decoding.beam import BeamChooser
from bgrpo.decoding.compiled import compiled_kernel
from bgrpo.decoding.diverse_beam import DiverseBeamChooser
from bgrpo.decoding.fast_layers import Precision
from bgrpo.decoding.plain_search import PlainSearch
from bgrpo.decoding.sample import SampleChooser, TruncatedSampleChooser, uniform_streams
from bgrpo.decoding.search import Traces
from bgrpo.decoding.settings import DecodeSettings
from bgrpo.decoding.slots import NO_TOKEN, Chooser
from bgrpo.decoding.stochastic_beam import StochasticBeamChooser, noise_streams
from bgrpo.decoding.stop_strings import StoppingChooser, StopStrings, TextOf
from bgrpo.decoding.support import EngineName, context_of, service_of
from bgrpo.decoding.token_mask import ForbiddenTokens, TokenMask
from bgrpo.decoding.truncation import Truncation
from bgrpo.errors import NotFiniteError, UserError
from bgrpo.groups import RANKED, Completion, Group, Search, passages_of


class DecodeEngine:
    """Completes prompts with a language model of transformers, causal or with an encoder, which stays as it is.

    The model's weights may change between calls. Decoding the same request again, with the same weights and threads,
    gives the identical result; in another batch a prompt gets the same result up to floating-point ties. The tree and
    the plain path give the same results up to rounding.

    Args:
        model: fp32; its device is used.
        precision: of the layers' matrix products, and of keys and values. ``bf16`` is faster, keeps half as much per
            token, and rounds these only: norms, the arithmetic of attention, head and scores are fp32 in both.
        max_rows: most completions decoded at once; bounds memory.
        compiled: use the compiled attention kernel where there is one (on the CPU, with a C++ compiler).
        engine: the tree or the plain path, as ``rollout.engine`` says.

    Raises:
        UserError: the model cannot be decoded exactly, or not in this precision.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        precision: Precision = "fp32",
        max_rows: int = 1024,
        compiled: bool = True,
        engine: EngineName = "auto",
    ) -> None:
        service = service_of(model, engine)
        service.check_precision(precision)
        if model.dtype != torch.float32:
            raise UserError(
                f"the model's weights are {model.dtype}: load it with dtype=torch.float32; precision='bf16' rounds "
                f"what may be rounded"
            )
        self._model = model
        self._search: BatchSearch
        if service.engine == "tree":
            kernel = compiled_kernel() if compiled and model.device.type == "cpu" else None
            self._search = TreeSearch(model, precision, max_rows, kernel)
        else:
            self._search = PlainSearch(model, max_rows)

    def decode(
        self,
        prompts: Sequence[Sequence[int]],
        settings: DecodeSettings,
        seeds: Sequence[int] | None = None,
        text_of: TextOf | None = None,
    ) -> list[Group]:
        """One group per prompt, in order.

        Args:
            prompts: token ids; for an encoder also several passages, see :func:`bgrpo.groups.passages_of`.
            settings: beams or samples, how many, how long.
            seeds: for what is drawn, one non-negative integer per prompt: its completions depend on no other prompt's.
                Beams need none and ignore them.
            text_of: gives the text of a completion's tokens; needed for ``settings.stop``.

        Returns:
            Beams best first, all distinct, fewer than K only where fewer sequences exist (diverse ones also where
            several were cut off alike); samples in draw order;
            stochastic beams as both, with their keys, and each group with its kappa.

        Raises:
            UserError: a prompt is empty, too long for the model, or has ids outside the vocabulary; seeds or
                ``text_of`` are missing.
            NotFiniteError: the model's logits are not numbers.
        """
        self._check_prompts(prompts, settings)
        if settings.stop and text_of is None:
            raise UserError("stop: finding texts needs text_of, which turns tokens into text")
        if not prompts:
            return []
        stop = StopStrings(settings.stop, text_of, settings.min_new_tokens) if settings.stop and text_of else None
        walk = None if settings.allowed is None else settings.allowed.on(self._model.device)
        seeds = _checked_seeds(seeds, len(prompts)) if settings.mode not in RANKED else [0] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))  # little padding within a batch
        size = max(1, self._search.most_rows // settings.width)
        groups: dict[int, Group] = {}
        rows = min(size, len(prompts)) * settings.width
        with _evaluation_mode(self._model), self._search.ready(rows):
            alike = [order]
            if not self._search.takes_ragged():
                alike = [list(same) for _, same in itertools.groupby(order, key=lambda index: len(prompts[index]))]
            for batch in (part[start : start + size] for part in alike for start in range(0, len(part), size)):
                own: Chooser = self._chooser(settings, [seeds[index] for index in batch])
                ids = [list(prompts[index]) for index in batch]
                chooser = own if stop is None else StoppingChooser(own, stop, len(batch), settings.width)
                if walk is not None:
                    chooser = AllowedChooser(own, walk, walk.roots(ids), settings.width)
                traces = self._search.run(ids, chooser, settings.width, settings.max_new_tokens)
                _check_numbers(traces, batch)
                found = _assemble(traces, ids, settings.mode)
                if isinstance(own, StochasticBeamChooser):
                    found = [_drawn(*of) for of in zip(found, own.keys_GK.tolist(), strict=True)]
                if isinstance(own, TruncatedSampleChooser):
                    found = [_from_part(*of) for of in zip(found, own.log_kept_GKT.tolist(), strict=True)]
                groups.update(zip(batch, found, strict=True))
        return [groups[index] for index in range(len(prompts))]

    def _chooser(self, settings: DecodeSettings, seeds: Sequence[int]) -> Chooser:
        mask, device = TokenMask.of(settings), self._model.device
        forbidden = ForbiddenTokens(mask, device) if mask is not None else None
        if settings.mode == "beam":
            return BeamChooser(settings.group_size, settings.end_tokens, forbidden)
        if settings.mode == "diverse_beam":
            size, groups = settings.group_size, settings.beam_groups or settings.group_size
            how = (size, groups, settings.diversity, settings.end_tokens, device)
            return DiverseBeamChooser(len(seeds), *how, forbidden)
        if settings.mode == "stochastic_beam":
            states_GTK = noise_streams(seeds, settings.width, settings.max_new_tokens).to(device)
            return StochasticBeamChooser(states_GTK, settings.end_tokens, settings.temperature, forbidden)
        uniforms_GKT = uniform_streams(seeds, settings.group_size, settings.max_new_tokens).to(device)
        if not settings.truncates:
            return SampleChooser(uniforms_GKT, settings.end_tokens, settings.temperature, forbidden)
        truncation = Truncation(settings.top_k, settings.top_p, settings.min_p)
        return TruncatedSampleChooser(uniforms_GKT, settings.end_tokens, settings.temperature, forbidden, truncation)

    def _check_prompts(self, prompts: Sequence[Sequence[int]], settings: DecodeSettings) -> None:
        vocabulary, context = self._model.config.get_text_config().vocab_size, context_of(self._model.config)
        settings.check_vocabulary(vocabulary)
        encoder = bool(self._model.config.is_encoder_decoder)
        if encoder and context is not None and settings.max_new_tokens > context:
            raise UserError(f"max_new_tokens={settings.max_new_tokens}: the model's decoder has {context} places")
        apart = [passages_of(prompt) if encoder else [prompt] for prompt in prompts]
        for index, prompt in ((index, passage) for index, passages in enumerate(apart) for passage in passages):
            total = len(prompt) + (0 if encoder else settings.max_new_tokens)
            if not len(prompt):
                raise UserError(f"prompt {index} is empty: expected at least one token")
            if context is not None and total > context:
                asked = "" if encoder else f" + max_new_tokens={settings.max_new_tokens} = {total}"
                raise UserError(
                    f"prompt {index} is too long: {len(prompt)} tokens{asked}, and the model's context has {context}"
                )
            if min(prompt) < 0 or max(prompt) >= vocabulary:
                raise UserError(
                    f"prompt {index} has token ids from {min(prompt)} to {max(prompt)}: the model's vocabulary has "
                    f"ids 0 to {vocabulary - 1}"
                )


def _checked_seeds(seeds: Sequence[int] | None, prompts: int) -> Sequence[int]:
    if seeds is None or len(seeds) != prompts:
        raise UserError(f"sampling {prompts} prompts needs {prompts} seeds, found {len(seeds or [])}")
    if min(seeds, default=0) < 0:
        raise UserError(f"seed {min(seeds)}: expected 0 or more")
    return seeds


@contextmanager
def _evaluation_mode(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout off, and afterwards put every module back into its own mode."""
    training = [module for module in model.modules() if module.training]
    if training:
        model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _check_numbers(traces: Traces, batch: Sequence[int]) -> None:
    bad = torch.isnan(traces.scores_GK).any(1).nonzero().squeeze(1).tolist()
    if bad:
        raise NotFiniteError(
            f"the model's logits are not numbers after prompt {min(batch[row] for row in bad)}: its weights hold NaN "
            f"or infinity, or are so large that the computation overflows"
        )


def _assemble(traces: Traces, prompts: list[list[int]], mode: Search) -> list[Group]:
    lengths = (traces.tokens_GKT != NO_TOKEN).sum(-1).tolist()
    exists = (traces.scores_GK > -torch.inf).tolist()
    tokens, logps, finished = traces.tokens_GKT.tolist(), traces.logps_GKT.tolist(), traces.finished_GK.tolist()
    groups = []
    for g, group_lengths in enumerate(lengths):
        completions = [
            Completion(tokens[g][k][:length], logps[g][k][:length], finished[g][k])
            for k, length in enumerate(group_lengths)
            if exists[g][k]
        ]
        if mode == "diverse_beam":  # groups may be cut off at the same place
            completions = list({tuple(each.tokens): each for each in completions}.values())
        if mode in RANKED:
            completions.sort(key=lambda completion: (-completion.logprob, completion.tokens))
        groups.append(Group(prompts[g], completions))
    return groups


def _from_part(group: Group, log_kept: Sequence[Sequence[float]]) -> Group:
    """The group with the log-probabilities of its samples in what each token was drawn from."""
    completions = [
        replace(completion, sampled_logprobs=[a - b for a, b in zip(completion.logprobs, kept, strict=False)])
        for completion, kept in zip(group.completions, log_kept, strict=True)
    ]
    return replace(group, completions=completions)


def _drawn(group: Group, keys: Sequence[float]) -> Group:
    """The group without the last of its completions, whose key is the largest of those not drawn."""
    completions = [replace(completion, key=key) for completion, key in zip(group.completions, keys, strict=False)]
    if len(completions) < len(keys):
        return replace(group, completions=completions)
    return replace(group, completions=completions[:-1], kappa=keys[-1])
