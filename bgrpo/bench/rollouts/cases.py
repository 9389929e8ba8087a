"""What ``bgrpo bench rollouts`` measures: the cases and the engines, by name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal

from bgrpo.errors import UserError

Mode = Literal["beam", "sample"]


@dataclass(frozen=True, slots=True)
class EngineSpec:
    """One engine in one precision."""

    name: str  # as typed after --engine
    engine: str  # as printed, ``bgrpo`` for both of ours
    dtype: Literal["fp32", "bf16"]  # of the layers' weights
    label: str  # for tables and pictures
    whole_request: bool = True  # False: one prompt per call, so that a few of the prompts measure the rate
    modes: tuple[Mode, ...] = ("beam",)


ENGINES = {
    spec.name: spec
    for spec in (
        EngineSpec("bgrpo", "bgrpo", "fp32", "bgrpo fp32", modes=("beam", "sample")),
        EngineSpec("bgrpo-bf16", "bgrpo", "bf16", "bgrpo bf16", modes=("beam", "sample")),
        EngineSpec("generate", "generate", "fp32", "generate", modes=("beam", "sample")),
        EngineSpec("ctranslate2", "ctranslate2", "fp32", "CTranslate2", whole_request=False, modes=("beam", "sample")),
        EngineSpec("ctranslate2-batched", "ctranslate2-batched", "fp32", "CT2 batched"),
        EngineSpec("openvino-genai", "openvino-genai", "fp32", "OpenVINO GenAI", modes=("beam", "sample")),
        EngineSpec("loop", "loop", "fp32", "loop", whole_request=False),
    )
}
OURS_AND_GENERATE = ("bgrpo", "bgrpo-bf16", "generate")
OF_SMALL_MODELS = (*OURS_AND_GENERATE, "ctranslate2", "ctranslate2-batched", "loop")
OF_LANGUAGE_MODELS = (*OURS_AND_GENERATE, "ctranslate2", "openvino-genai")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """A GPT-2-shaped model with random weights."""

    layers: int
    heads: int
    width: int
    context: int
    vocabulary: int = 49  # of the shipped policy's tokenizer


@dataclass(frozen=True, slots=True)
class LanguageModelShape:
    """A published model's configuration; its weights are random, so nothing is downloaded."""

    family: Literal["llama", "qwen2"]
    vocabulary: int
    width: int
    inner_width: int
    layers: int
    heads: int
    key_heads: int
    options: dict[str, Any] = field(default_factory=dict)  # further ones of transformers' configuration


SHAPES: dict[str, ModelShape | LanguageModelShape] = {
    "19M": ModelShape(layers=6, heads=8, width=512, context=320, vocabulary=49),
    "19M, context 2,304": ModelShape(layers=6, heads=8, width=512, context=2304, vocabulary=49),
    "2 x 256, vocabulary 151,936": ModelShape(layers=2, heads=4, width=256, context=320, vocabulary=151_936),
    "tiny": ModelShape(layers=2, heads=2, width=32, context=64, vocabulary=19),
    "SmolLM2-135M": LanguageModelShape(
        "llama",
        49_152,
        width=576,
        inner_width=1536,
        layers=30,
        heads=9,
        key_heads=3,
        options={"rms_norm_eps": 1e-5, "rope_parameters": {"rope_type": "default", "rope_theta": 100_000.0}},
    ),
    "Qwen2.5-0.5B": LanguageModelShape(
        "qwen2",
        151_936,
        width=896,
        inner_width=4864,
        layers=24,
        heads=14,
        key_heads=2,
        options={"rms_norm_eps": 1e-6, "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0}},
    ),
    "tiny llama": LanguageModelShape("llama", 19, width=32, inner_width=48, layers=2, heads=4, key_heads=2),
    "tiny qwen2": LanguageModelShape("qwen2", 19, width=32, inner_width=48, layers=2, heads=4, key_heads=2),
}
"""Models by name; ``shipped`` is the policy that comes with the package."""


@dataclass(frozen=True, slots=True)
class Case:
    """One request, decoded by every engine."""

    name: str  # as typed after --case
    model: str  # a key of SHAPES, or ``shipped``
    prompts: int  # G
    beam_width: int  # K, beams or samples per prompt
    prompt_tokens: int | None  # of every prompt, random ones; None: the shipped policy's own problems
    new_tokens: int  # per completion where nothing ends; with the policy's own problems the most
    mode: Mode = "beam"
    engines: tuple[str, ...] = OF_SMALL_MODELS  # those that take part

    @property
    def ends(self) -> bool:
        """Whether completions end by themselves; otherwise the end token is made impossible, for equal work."""
        return self.prompt_tokens is None

    @property
    def beams(self) -> int:
        """Completions of the request."""
        return self.prompts * self.beam_width

    def taking_part(self, names: Sequence[str]) -> list[EngineSpec]:
        """Of the named engines, those that this case is for, in the order of :data:`ENGINES`."""
        return [
            spec for name, spec in ENGINES.items() if name in names and name in self.engines and self.mode in spec.modes
        ]


_WIDTHS = ((1, 10), (1, 30), (8, 25), (16, 30))
STANDARD_CASES = {
    case.name: case
    for case in (
        *(Case(f"19M-{g}x{k}", "19M", g, k, prompt_tokens=220, new_tokens=60) for g, k in _WIDTHS),
        Case("19M-sample-8x25", "19M", 8, 25, prompt_tokens=220, new_tokens=60, mode="sample"),
        *(Case(f"shipped-{g}x{k}", "shipped", g, k, prompt_tokens=130, new_tokens=60) for g, k in _WIDTHS),
        Case("shipped-answers-32x10", "shipped", 32, 10, prompt_tokens=None, new_tokens=24),
        Case("shipped-sample-answers-32x10", "shipped", 32, 10, prompt_tokens=None, new_tokens=24, mode="sample"),
    )
}
EXTRA_CASES = {
    case.name: case
    for case in (
        Case("long-prompt-2x10", "19M, context 2,304", 2, 10, 2000, 60, engines=OURS_AND_GENERATE),
        Case("large-vocabulary-4x10", "2 x 256, vocabulary 151,936", 4, 10, 64, 60, engines=OURS_AND_GENERATE),
        Case("tiny-2x4", "tiny", 2, 4, prompt_tokens=12, new_tokens=6),
        Case("tiny-sample-2x4", "tiny", 2, 4, prompt_tokens=12, new_tokens=6, mode="sample"),
        *(
            Case(f"tiny-{family}-2x4", f"tiny {family}", 2, 4, 12, 6, engines=OF_LANGUAGE_MODELS)
            for family in ("llama", "qwen2")
        ),
    )
}
_MODES: tuple[Mode, ...] = ("beam", "sample")
LANGUAGE_MODEL_CASES = {
    case.name: case
    for model, (g, k), tokens, mode in product(
        ("SmolLM2-135M", "Qwen2.5-0.5B"), ((1, 8), (8, 8), (16, 16)), (256, 1024), _MODES
    )
    for case in [
        Case(
            f"{model}-{'sample-' if mode == 'sample' else ''}{g}x{k}-{tokens}",
            model, g, k, prompt_tokens=tokens, new_tokens=24, mode=mode, engines=OF_LANGUAGE_MODELS,
        )
    ]
}  # fmt: skip


CASES = STANDARD_CASES | EXTRA_CASES | LANGUAGE_MODEL_CASES


def choose_cases(names: Sequence[str]) -> list[Case]:
    """The cases of these names; ``standard``, ``extra`` and ``language-models`` stand for all of a kind.

    Raises:
        UserError: an unknown name.
    """
    kinds = {"standard": STANDARD_CASES, "extra": EXTRA_CASES, "language-models": LANGUAGE_MODEL_CASES}
    groups = kinds | {name: {name: case} for name, case in CASES.items()}
    chosen: dict[str, Case] = {}
    for name in names:
        check_name("--case", name, groups)
        chosen |= groups[name]
    return list(chosen.values())


def check_name(option: str, name: str, known: Iterable[str]) -> None:
    """Raise UserError for a name that is not one of those known."""
    if name not in (names := list(known)):
        raise UserError(f"{option} {name}: expected one of {', '.join(names)}")
