"""CTranslate2 as a peer: the same weights, converted in memory to its own format. Optional extra ``bench``."""

from __future__ import annotations

import tempfile
from importlib.util import find_spec
from typing import Any

import torch

from bgrpo.bench.rollouts.cases import Case
from bgrpo.bench.rollouts.interface import Beam, Prompts
from bgrpo.bench.rollouts.workload import Workload

HOW_TO_INSTALL = "ctranslate2 is not installed: pip install 'bgrpo[bench]'"


def ctranslate2_is_installed() -> bool:
    """Whether the optional package is there; does not import it."""
    return find_spec("ctranslate2") is not None


class CTranslate2Engine:
    """CTranslate2's beam search in fp32, ranked by summed log-probability (``length_penalty=0``).

    Ended beams leave the search and K others go on, as in ``generate``.

    Args:
        workload: a GPT-2-shaped model.
        case: gives K.
        batched: all prompts in one call; otherwise one prompt per call.
    """

    def __init__(self, workload: Workload, case: Case, batched: bool) -> None:
        import ctranslate2

        self._eos = workload.eos_token_id
        self._width = case.beam_width
        self._batched = batched
        with tempfile.TemporaryDirectory(prefix="bgrpo-bench-") as folder:
            _converter(workload).convert(folder, force=True)
            self._generator = ctranslate2.Generator(
                folder, compute_type="float32", inter_threads=1, intra_threads=torch.get_num_threads()
            )

    def decode(self, prompts: Prompts, new_tokens: int) -> object:
        """See :class:`bgrpo.bench.rollouts.engines.Engine`."""
        return self._results(prompts, new_tokens)

    def completions(self, prompts: Prompts, new_tokens: int) -> list[list[Beam]]:
        """See :class:`bgrpo.bench.rollouts.engines.Engine`."""
        return [
            [Beam(tuple(ids), score) for ids, score in zip(result.sequences_ids, result.scores, strict=True)]
            for result in self._results(prompts, new_tokens)
        ]

    def _results(self, prompts: Prompts, new_tokens: int) -> list[Any]:
        tokens = [[_token(i) for i in prompt] for prompt in prompts]
        calls = [tokens] if self._batched else [[prompt] for prompt in tokens]
        return [
            result
            for call in calls
            for result in self._generator.generate_batch(
                call,
                beam_size=self._width,
                num_hypotheses=self._width,
                length_penalty=0.0,
                max_length=new_tokens,
                end_token=[self._eos],
                return_end_token=True,
                include_prompt_in_result=False,
                return_scores=True,
            )
        ]


def _token(index: int) -> str:
    """CTranslate2 takes tokens as text."""
    return f"t{index}"


def _converter(workload: Workload) -> Any:
    """A converter of the model at hand; the library's own reads a folder, which would lose the bias of the head."""
    from ctranslate2.converters.converter import Converter
    from ctranslate2.converters.transformers import GPT2Loader

    class InMemoryConverter(Converter):
        def _load(self) -> Any:
            with torch.no_grad():
                spec = GPT2Loader().get_model_spec(workload.model)
            spec.register_vocabulary([_token(i) for i in range(workload.model.config.vocab_size)])
            spec.config.eos_token = _token(workload.eos_token_id)
            spec.config.bos_token = _token(workload.eos_token_id)
            spec.config.unk_token = _token(workload.pad_token_id)
            return spec

    return InMemoryConverter()
