"""The engines that are compared: ours, transformers' ``generate``, CTranslate2, OpenVINO, and one beam at a time."""

from __future__ import annotations

import copy
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from bgrpo.bench.rollouts.cases import Case, EngineSpec
from bgrpo.bench.rollouts.decode_workload import Workload
from bgrpo.bench.rollouts.openvino_graph import openvino_graph
from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.seeds import rollout_seed

Prompts = Sequence[Sequence[int]]

_PACKAGES = {"ctranslate2": "ctranslate2", "ctranslate2-batched": "ctranslate2", "openvino-genai": "openvino_genai"}
"""What an engine needs; of the optional extra ``bench``."""

_SAMPLE_SEED = 7


class Beam(NamedTuple):
    """One completion."""

    tokens: tuple[int, ...]  # up to and including the end token, where it came
    logprob: float  # their summed log-probability, as the engine gives it


class Engine(ABC):
    """Decodes K completions of every prompt.

    Args:
        spec: name and precision.
        workload: the model, which the engine copies where it changes it, and the special tokens.
        case: gives K and the mode.
    """

    def __init__(self, spec: EngineSpec, workload: Workload, case: Case) -> None:
        self._spec = spec
        self._model: Any = workload.model  # generate is a mixin's, which the type does not know
        self._eos = workload.eos_token_id
        self._pad = workload.pad_token_id
        self._width = case.beam_width
        self._mode = case.mode

    @abstractmethod
    def decode(self, prompts: Prompts, new_tokens: int) -> Any:
        """What is timed: a decode as a trainer would ask for it."""

    @abstractmethod
    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        """The same decode as records that can be compared, one list per prompt."""


class BgrpoEngine(Engine):
    """Ours. bf16 is of the layers' matrix products only."""

    def __init__(self, spec: EngineSpec, workload: Workload, case: Case) -> None:
        super().__init__(spec, workload, case)
        self._engine = DecodeEngine(workload.model, precision=spec.dtype)

    def decode(self, prompts: Prompts, new_tokens: int) -> Any:
        settings = DecodeSettings(self._mode, self._width, new_tokens, eos_token_id=self._eos, pad_token_id=self._pad)
        seeds = [rollout_seed(_SAMPLE_SEED, 0, index) for index in range(len(prompts))]
        return self._engine.decode(prompts, settings, seeds)

    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        groups = self.decode(prompts, new_tokens)
        return [[Beam(tuple(c.tokens), c.logprob) for c in group.completions] for group in groups]


class GenerateEngine(Engine):
    """transformers' ``generate`` on all prompts in one call, padded on the left.

    Its beam search moves ended beams to a list of their own and goes on with K others, so where completions end it
    searches more than K beams. ``length_penalty=0`` ranks by summed log-probability, and ``early_stopping=False`` with
    it stops exactly when no running beam can enter the list.
    """

    def decode(self, prompts: Prompts, new_tokens: int) -> Any:
        """Without the scores, which ``generate`` would gather for the whole vocabulary."""
        return self._generate(prompts, new_tokens)

    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        out = self._generate(prompts, new_tokens, return_dict_in_generate=True, output_scores=True)
        tokens = [self._up_to_end(row) for row in out.sequences[:, max(map(len, prompts)) :].tolist()]
        if self._mode == "beam":
            scores = out.sequences_scores.tolist()
        else:
            steps_NT = self._model.compute_transition_scores(out.sequences, out.scores, normalize_logits=True)
            scores = [sum(row[: len(kept)]) for row, kept in zip(steps_NT.tolist(), tokens, strict=True)]
        beams = [Beam(row, score) for row, score in zip(tokens, scores, strict=True)]
        return [beams[start : start + self._width] for start in range(0, len(beams), self._width)]

    def _generate(self, prompts: Prompts, new_tokens: int, **options: Any) -> Any:
        longest = max(map(len, prompts))
        ids_GP = torch.tensor([[self._pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask_GP = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        if self._mode == "beam":
            options |= {
                "do_sample": False, "num_beams": self._width, "length_penalty": 0.0, "early_stopping": False
            }  # fmt: skip
        else:
            options |= {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
        with torch.inference_mode(), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(_SAMPLE_SEED)
            return self._model.generate(
                ids_GP,
                attention_mask=mask_GP,
                num_return_sequences=self._width,
                max_new_tokens=new_tokens,
                eos_token_id=self._eos,
                pad_token_id=self._pad,
                **options,
            )

    def _up_to_end(self, row: list[int]) -> tuple[int, ...]:
        return tuple(row[: row.index(self._eos) + 1] if self._eos in row else row)


class CTranslate2Engine(Engine):
    """CTranslate2's beam search and sampling in fp32, beams ranked by summed log-probability. Optional extra ``bench``.

    The same weights, converted to its own format. Ended beams leave the search and K others go on, as in ``generate``.
    """

    def __init__(self, spec: EngineSpec, workload: Workload, case: Case) -> None:
        super().__init__(spec, workload, case)
        import ctranslate2

        with tempfile.TemporaryDirectory(prefix="bgrpo-bench-") as folder:
            _converter(workload).convert(folder, force=True)
            self._generator = ctranslate2.Generator(
                folder, compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
            )

    def decode(self, prompts: Prompts, new_tokens: int) -> list[Any]:
        tokens = [[_token(i) for i in prompt] for prompt in prompts]
        calls = [tokens] if self._spec.whole_request else [[prompt] for prompt in tokens]
        search = {"beam_size": self._width} if self._mode == "beam" else {"beam_size": 1, "sampling_topk": 0}
        return [
            result
            for call in calls
            for result in self._generator.generate_batch(
                call,
                **search,
                num_hypotheses=self._width,
                length_penalty=0.0,
                max_length=new_tokens,
                end_token=[self._eos],
                return_end_token=True,
                include_prompt_in_result=False,
                return_scores=True,
            )
        ]

    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        return [
            [Beam(tuple(ids), score) for ids, score in zip(result.sequences_ids, result.scores, strict=True)]
            for result in self.decode(prompts, new_tokens)
        ]


class OpenVinoEngine(Engine):
    """openvino-genai's continuous batching with paged attention, its default, in fp32 throughout. Optional package.

    Its beams and samples of a prompt share the prompt's keys and values. Log-probabilities are ranked as ours are.
    """

    def __init__(self, spec: EngineSpec, workload: Workload, case: Case) -> None:
        super().__init__(spec, workload, case)
        import openvino
        import openvino_genai

        self._openvino, self._genai = openvino, openvino_genai
        exact = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
        with tempfile.TemporaryDirectory(prefix="bgrpo-bench-") as folder:
            graph = openvino_graph(workload.model)
            openvino.save_model(graph, f"{folder}/openvino_model.xml", compress_to_fp16=False)
            ids = {"eos_token_id": self._eos, "pad_token_id": self._pad, "bos_token_id": self._eos}
            Path(folder, "generation_config.json").write_text(json.dumps(ids))
            Path(folder, "config.json").write_text(json.dumps({"model_type": workload.model.config.model_type}))
            self._pipeline = openvino_genai.LLMPipeline(
                folder, "CPU", INFERENCE_NUM_THREADS=torch.get_num_threads(), ATTENTION_BACKEND="PA", **exact
            )

    def decode(self, prompts: Prompts, new_tokens: int) -> Any:
        longest = max(map(len, prompts))
        ids = np.array([[self._pad] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = np.array([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        config = self._genai.GenerationConfig()
        config.max_new_tokens, config.num_return_sequences = new_tokens, self._width
        config.set_eos_token_id(self._eos)
        config.logprobs = 1
        if self._mode == "beam":
            config.num_beams, config.length_penalty = self._width, 0.0
            config.stop_criteria = self._genai.StopCriteria.NEVER
        else:
            config.do_sample, config.temperature, config.top_p, config.rng_seed = True, 1.0, 1.0, _SAMPLE_SEED
        tensors = (self._openvino.Tensor(array) for array in (ids, mask))
        return self._pipeline.generate(self._genai.TokenizedInputs(*tensors), config)

    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        out = self.decode(prompts, new_tokens)
        beams = [Beam(tuple(ids), score) for ids, score in zip(out.tokens, out.scores, strict=True)]
        return [beams[start : start + self._width] for start in range(0, len(beams), self._width)]


def missing_package(engine: str) -> str | None:
    """What to say where the optional package of an engine is not there; does not import it."""
    package = _PACKAGES.get(engine)
    if package is None or find_spec(package) is not None:
        return None
    return f"{package.replace('_', '-')} is not installed: pip install 'bgrpo[bench]'"


def _token(index: int) -> str:
    """CTranslate2 takes tokens as text."""
    return f"t{index}"


def _converter(workload: Workload) -> Any:
    """A converter of the model at hand; the library's own reads a folder, which would lose the bias of the head."""
    from ctranslate2.converters.converter import Converter
    from ctranslate2.converters.transformers import GPT2Loader, LlamaLoader, Qwen2Loader

    loaders = {"gpt2": GPT2Loader, "llama": LlamaLoader, "qwen2": Qwen2Loader}
    config = workload.model.config

    class InMemoryConverter(Converter):
        def _load(self) -> Any:
            # loaders take the layers out of the model they are given: a copy that shares all weights
            own = copy.deepcopy(workload.model, {id(weight): weight for weight in workload.model.parameters()})
            with torch.no_grad():
                spec = loaders[config.model_type]().get_model_spec(own)
            spec.register_vocabulary([_token(i) for i in range(config.vocab_size)])
            if config.model_type != "gpt2":
                spec.config.layer_norm_epsilon = config.rms_norm_eps
            spec.config.eos_token = spec.config.bos_token = _token(workload.eos_token_id)
            spec.config.unk_token = _token(workload.pad_token_id)
            return spec

    return InMemoryConverter()


class LoopEngine(Engine):
    """A plain beam search, as the first BGRPO code has it: one forward pass per beam, its cache copied per beam."""

    def decode(self, prompts: Prompts, new_tokens: int) -> Any:
        return self.completions(prompts, new_tokens)

    @torch.inference_mode()
    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        return [self._search(prompt, new_tokens) for prompt in prompts]

    def _search(self, prompt: Sequence[int], new_tokens: int) -> list[Beam]:
        ended: list[Beam] = []
        cache = DynamicCache()
        running = [(Beam((), 0.0), cache, self._next_logps(list(prompt), cache))]
        for step in range(1, new_tokens + 1):
            candidates: list[tuple[Beam, Any]] = [(beam, None) for beam in ended]
            for beam, cache, logps_V in running:
                best = logps_V.topk(min(self._width, logps_V.numel()))
                for logp, token in zip(best.values.tolist(), best.indices.tolist(), strict=True):
                    candidates.append((Beam((*beam.tokens, token), beam.logprob + logp), cache))
            candidates = sorted(candidates, key=lambda candidate: -candidate[0].logprob)[: self._width]
            ended = [beam for beam, _ in candidates if beam.tokens[-1] == self._eos or step == new_tokens]
            running = []
            for beam, cache in candidates:
                if beam not in ended:
                    own = copy.deepcopy(cache)
                    running.append((beam, own, self._next_logps([beam.tokens[-1]], own)))
            if not running:
                break
        return ended

    def _next_logps(self, ids: list[int], cache: DynamicCache) -> Tensor:
        out = self._model(
            input_ids=torch.tensor([ids]),
            attention_mask=torch.ones(1, cache.get_seq_length() + len(ids), dtype=torch.long),
            past_key_values=cache,
            use_cache=True,
        )
        return out.logits[0, -1].log_softmax(-1)


def make_engine(spec: EngineSpec, workload: Workload, case: Case) -> Engine:
    """The engine of this name."""
    classes: dict[str, type[Engine]] = {
        "bgrpo": BgrpoEngine, "generate": GenerateEngine, "loop": LoopEngine, "openvino-genai": OpenVinoEngine
    }  # fmt: skip
    return classes.get(spec.engine, CTranslate2Engine)(spec, workload, case)
