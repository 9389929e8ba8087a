"""The engines that are compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from bgrpo.bench.rollouts.cases import Case, EngineSpec
from bgrpo.bench.rollouts.ctranslate2_engine import CTranslate2Engine
from bgrpo.bench.rollouts.interface import Beam, Engine, Prompts
from bgrpo.bench.rollouts.workload import Workload
from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.seeds import rollout_seed

_SAMPLE_SEED = 7


class BgrpoEngine:
    """Ours. bf16 is of the layers' matrix products only."""

    def __init__(self, workload: Workload, case: Case, dtype: Literal["fp32", "bf16"]) -> None:
        self._engine = DecodeEngine(workload.model, precision=dtype)
        self._workload = workload
        self._case = case

    def decode(self, prompts: Prompts, new_tokens: int) -> object:
        """See :class:`Engine`."""
        return self._groups(prompts, new_tokens)

    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        """See :class:`Engine`."""
        groups = self._groups(prompts, new_tokens)
        return [[Beam(tuple(c.tokens), c.logprob) for c in group.completions] for group in groups]

    def _groups(self, prompts: Prompts, new_tokens: int) -> Any:
        settings = DecodeSettings(
            self._case.mode,
            self._case.beam_width,
            new_tokens,
            eos_token_id=self._workload.eos_token_id,
            pad_token_id=self._workload.pad_token_id,
        )
        seeds = [rollout_seed(_SAMPLE_SEED, 0, index) for index in range(len(prompts))]
        return self._engine.decode(prompts, settings, seeds)


class GenerateEngine:
    """transformers' ``generate`` on all prompts in one call, padded on the left.

    Its beam search moves ended beams to a list of their own and goes on with K others, so where completions end it
    searches more than K beams. ``length_penalty=0`` ranks by summed log-probability, and ``early_stopping=False`` with
    it stops exactly when no running beam can enter the list.
    """

    def __init__(self, workload: Workload, case: Case) -> None:
        self._model: Any = workload.model  # generate is a mixin's, which the type does not know
        self._workload = workload
        self._case = case

    def decode(self, prompts: Prompts, new_tokens: int) -> object:
        """See :class:`Engine`. Without the scores, which it would gather for the whole vocabulary."""
        return self._generate(prompts, new_tokens)

    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        """See :class:`Engine`."""
        out = self._generate(prompts, new_tokens, return_dict_in_generate=True, output_scores=True)
        width = max(len(prompt) for prompt in prompts)
        tokens = [self._up_to_end(row) for row in out.sequences[:, width:].tolist()]
        if self._case.mode == "beam":
            scores = out.sequences_scores.tolist()
        else:
            steps_NT = self._model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
            scores = [sum(row[: len(kept)]) for row, kept in zip(steps_NT.tolist(), tokens, strict=True)]
        beams = [Beam(row, score) for row, score in zip(tokens, scores, strict=True)]
        size = self._case.beam_width
        return [beams[start : start + size] for start in range(0, len(beams), size)]

    def _generate(self, prompts: Prompts, new_tokens: int, **options: Any) -> Any:
        ids_GP, mask_GP = _left_padded(prompts, self._workload.pad_token_id)
        if self._case.mode == "beam":
            mode = {"num_beams": self._case.beam_width, "length_penalty": 0.0, "early_stopping": False}
        else:
            mode = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_SAMPLE_SEED)
            return self._model.generate(
                ids_GP,
                attention_mask=mask_GP,
                num_return_sequences=self._case.beam_width,
                max_new_tokens=new_tokens,
                eos_token_id=self._workload.eos_token_id,
                pad_token_id=self._workload.pad_token_id,
                **{"do_sample": False, **mode},
                **options,
            )

    def _up_to_end(self, row: list[int]) -> tuple[int, ...]:
        eos = self._workload.eos_token_id
        return tuple(row[: row.index(eos) + 1] if eos in row else row)


@dataclass(slots=True)
class _Path:
    """A beam of the loop, with the keys and values of everything before its last token."""

    tokens: tuple[int, ...]
    score: float
    cache: Any
    logps_V: Tensor | None = None  # None: it has ended


class LoopEngine:
    """A plain beam search, as the first BGRPO code has it: one forward pass per beam, its cache copied per beam."""

    def __init__(self, workload: Workload, case: Case) -> None:
        self._model = workload.model
        self._eos = workload.eos_token_id
        self._width = case.beam_width

    def decode(self, prompts: Prompts, new_tokens: int) -> object:
        """See :class:`Engine`."""
        return self.completions(prompts, new_tokens)

    @torch.inference_mode()
    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        """See :class:`Engine`."""
        return [self._search(prompt, new_tokens) for prompt in prompts]

    def _search(self, prompt: Sequence[int], new_tokens: int) -> list[Beam]:
        cache = DynamicCache()
        paths = [_Path((), 0.0, cache, self._next_logps(list(prompt), cache))]
        for step in range(new_tokens):
            paths = self._best_extensions(paths, is_last=step + 1 == new_tokens)
            if all(path.logps_V is None for path in paths):
                break
        return [Beam(path.tokens, path.score) for path in paths]

    def _best_extensions(self, paths: list[_Path], is_last: bool) -> list[_Path]:
        """The K best of all ended paths and all extensions of the others; the forward passes of those that go on."""
        candidates: list[tuple[float, int | None, _Path]] = []
        for path in paths:
            if path.logps_V is None:
                candidates.append((path.score, None, path))
                continue
            best = path.logps_V.topk(min(self._width, path.logps_V.numel()))
            candidates += [
                (path.score + logp, token, path)
                for logp, token in zip(best.values.tolist(), best.indices.tolist(), strict=True)
            ]
        candidates.sort(key=lambda candidate: -candidate[0])
        return [
            path if token is None else self._extend(path, token, score, is_last)
            for score, token, path in candidates[: self._width]
        ]

    def _extend(self, path: _Path, token: int, score: float, is_last: bool) -> _Path:
        tokens = (*path.tokens, token)
        if is_last or token == self._eos:
            return _Path(tokens, score, None)
        cache = copy.deepcopy(path.cache)
        return _Path(tokens, score, cache, self._next_logps([token], cache))

    def _next_logps(self, ids: list[int], cache: DynamicCache) -> Tensor:
        out = self._model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, cache.get_seq_length() + len(ids), dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
        )
        return out.logits[0, -1].log_softmax(-1)


def make_engine(spec: EngineSpec, workload: Workload, case: Case) -> Engine:
    """The engine of this name, with its own copy of the model where it changes it."""

    makers: dict[str, Callable[[], Engine]] = {
        "bgrpo": lambda: BgrpoEngine(workload, case, spec.dtype),
        "generate": lambda: GenerateEngine(workload, case),
        "ctranslate2": lambda: CTranslate2Engine(workload, case, spec.whole_request),
        "ctranslate2-batched": lambda: CTranslate2Engine(workload, case, spec.whole_request),
        "loop": lambda: LoopEngine(workload, case),
    }
    return makers[spec.engine]()


def _left_padded(prompts: Prompts, pad: int) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, [G, P] each."""
    width = max(len(prompt) for prompt in prompts)
    ids = [[pad] * (width - len(prompt)) + list(prompt) for prompt in prompts]
    mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
    return torch.tensor(ids), torch.tensor(mask)
