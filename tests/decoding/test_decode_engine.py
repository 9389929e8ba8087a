"""Requests: order, batches, repeatability, what is refused, and what the model is left like."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from decoding.engines import torch_engine
from decoding.tiny_models import bias_token, ragged_prompts, tiny_model
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    PreTrainedModel,
)

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.slots import Rows
from bgrpo.decoding.support import service_of
from bgrpo.errors import UserError
from bgrpo.groups import Group, Search

EOS = 2
SMALL: dict[str, Any] = {
    "vocab_size": 11,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 0,
}


def beams(group_size: int = 4, max_new_tokens: int = 8, **options: Any) -> DecodeSettings:
    return DecodeSettings(
        **{
            "mode": "beam",
            "group_size": group_size,
            "max_new_tokens": max_new_tokens,
            "eos_token_id": EOS,
            "pad_token_id": 0,
            **options,
        }
    )


def assert_close(found: Group, expected: Group) -> None:
    scores = [{tuple(c.tokens): c.logprob for c in group.completions} for group in (found, expected)]
    assert scores[0].keys() == scores[1].keys()
    assert scores[0] == pytest.approx(scores[1], abs=1e-5)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2"])
def test_beams_do_not_depend_on_the_batch(kind: str) -> None:
    model = tiny_model(kind, vocabulary=13, seed=2)
    prompts = ragged_prompts(9, 13, seed=1, longest=20)
    together = DecodeEngine(model).decode(prompts, beams(6, 20))
    in_threes = DecodeEngine(model, max_rows=18).decode(prompts, beams(6, 20))
    one_by_one = DecodeEngine(model, max_rows=1).decode(prompts[::-1], beams(6, 20))[::-1]
    for others in (in_threes, one_by_one):
        for found, expected in zip(others, together, strict=True):
            assert_close(found, expected)


def test_max_rows_bounds_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    engine = DecodeEngine(tiny_model(vocabulary=13), max_rows=10)
    run = engine._search.run
    monkeypatch.setattr(engine._search, "run", lambda prompts, *rest: sizes.append(len(prompts)) or run(prompts, *rest))
    engine.decode(ragged_prompts(5, 13, seed=1), beams(4, 6))
    assert sizes == [2, 2, 1]


def test_the_same_request_gives_identical_bits() -> None:
    model = tiny_model(vocabulary=13, seed=2)
    prompts = ragged_prompts(6, 13, seed=1, longest=20)
    for settings in (beams(6, 20), beams(6, 20, mode="sample", temperature=1.5)):
        first, second = (DecodeEngine(model).decode(prompts, settings, seeds=range(6)) for _ in range(2))
        assert first == second


@pytest.mark.parametrize("build", [DecodeEngine, torch_engine])
@pytest.mark.parametrize(("mode", "end"), [("beam", 0), ("sample", 0), ("stochastic_beam", 0), ("diverse_beam", 2)])
def test_the_short_way_of_steps_where_all_go_on_gives_the_same_bits(
    mode: Search, end: float, build: Callable[..., DecodeEngine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Early steps take it, later ones do not, as completions have ended: against looking every row up."""
    model, prompts = tiny_model(vocabulary=11, seed=2), ragged_prompts(3, 11, seed=0)
    bias_token(model, 2, end)
    request = DecodeSettings(mode, 4, 12, 2, 0)
    seeds = None if mode in ("beam", "diverse_beam") else [5, 6, 7]
    found = build(model).decode(prompts, request, seeds=seeds)
    taken: list[bool] = []
    of = Rows.of

    def looked_up(flat_R: torch.Tensor, group_size: int, all_live: bool = False) -> Rows:
        taken.append(all_live)
        return of(flat_R, group_size)

    monkeypatch.setattr(Rows, "of", looked_up)
    assert build(model).decode(prompts, request, seeds=seeds) == found
    assert set(taken) == {True, False}


def test_search_stops_when_all_have_ended() -> None:
    model = bias_token(tiny_model(vocabulary=9, seed=6, context=200), EOS, 8.0)
    fed = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape[1]))
    groups = DecodeEngine(model).decode([[1] * 5, [3] * 4], beams(40, 100))
    longest = max(len(completion.tokens) for group in groups for completion in group.completions)
    assert all(completion.finished for group in groups for completion in group.completions)
    assert len(fed) == 1 + longest < 100
    assert fed[-1] < max(fed), "beams that have ended are not fed"


def test_prompts_of_any_length_and_number_are_read_in_bounded_passes() -> None:
    model = tiny_model(vocabulary=9, seed=6, context=3000)
    fed = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, inputs: fed.append(inputs[0].shape[1]))
    prompts = [[1, 3, 4, 5, 6] * 500, [7] * 2900, [4], [5] * 1000, [6] * 1000, [8, 3]]
    together = DecodeEngine(model).decode(prompts, beams(3, 4))
    reading = fed[:-4]
    assert sum(reading) == sum(len(prompt) - 1 for prompt in prompts) and max(reading) <= 4096
    for prompt, group in zip(prompts, together, strict=True):
        assert_close(group, torch_engine(model).decode([prompt], beams(3, 4))[0])


class LargestResult(TorchDispatchMode):
    """Notes the largest result of an operation over several rows of logits."""

    def __init__(self, rows: int) -> None:
        super().__init__()
        self._rows = rows
        self.numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.ndim == 2 and 1 < len(result) <= self._rows:
            self.numel = max(self.numel, result.numel())
        return result


def test_of_a_large_vocabulary_few_logits_exist_at_a_time() -> None:
    model = tiny_model(vocabulary=300_000, seed=1)
    prompts = ragged_prompts(3, 300_000, seed=1)
    for settings in (beams(10, 3), beams(10, 3, mode="sample")):
        with LargestResult(rows=32) as largest:
            group = DecodeEngine(model).decode(prompts, settings, seeds=range(3))[1]
        assert 1 << 18 < largest.numel <= 1 << 22 < 3 * 10 * 300_000
        ids = torch.tensor([[*prompts[1], *group.completions[3].tokens]])
        logps = model(ids, use_cache=False).logits.double().log_softmax(-1)[0, len(prompts[1]) - 1 : -1]
        exact = logps.gather(1, ids[0, len(prompts[1]) :, None]).squeeze(1)
        assert group.completions[3].logprobs == pytest.approx(exact.tolist(), abs=1e-4)


def test_pad_is_a_token_like_any_other() -> None:
    model = tiny_model(vocabulary=7, seed=3)
    prompts = ragged_prompts(4, 7, seed=2)
    groups = DecodeEngine(model).decode(prompts, beams(pad_token_id=5))
    assert groups == DecodeEngine(model).decode(prompts, beams(pad_token_id=EOS))
    likely = DecodeEngine(bias_token(model, 5, 4.0)).decode(prompts, beams(pad_token_id=5))
    assert any(5 in completion.tokens for group in likely for completion in group.completions)


def test_every_module_gets_its_mode_back_and_dropout_is_off() -> None:
    model = tiny_model(vocabulary=9, attn_pdrop=0.5, resid_pdrop=0.5, embd_pdrop=0.5)
    model.train()
    model.transformer.h[0].eval()
    modes = [module.training for module in model.modules()]
    engine = DecodeEngine(model)
    trained = engine.decode([[1, 3]], beams())
    assert [module.training for module in model.modules()] == modes
    assert engine.decode([[1, 3]], beams()) == trained
    bias_token(model, 4, -1e4)  # never generated, so that only the second prompt meets it
    with torch.no_grad():
        model.transformer.wte.weight[4] = torch.nan
    with pytest.raises(FloatingPointError, match="not numbers after prompt 1"):
        engine.decode([[1, 3], [1, 3, 4]], beams())
    assert [module.training for module in model.modules()] == modes
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in model.parameters())


def test_new_weights_are_used_at_once() -> None:
    model, other = tiny_model(vocabulary=9, seed=1), tiny_model(vocabulary=9, seed=2)
    engine = DecodeEngine(model)
    before = engine.decode([[1, 3]], beams())
    model.load_state_dict(other.state_dict())
    assert engine.decode([[1, 3]], beams()) == DecodeEngine(other).decode([[1, 3]], beams()) != before


def test_no_prompts_give_no_groups() -> None:
    engine = DecodeEngine(tiny_model())
    assert engine.decode([], beams()) == []
    assert engine.decode([], beams(mode="sample"), seeds=[]) == []


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ([[1], []], "prompt 1 is empty"),
        ([[1], [1] * 57], r"prompt 1 is too long: 57 tokens \+ max_new_tokens=8 = 65, and the model's context has 64"),
        ([[1, 7]], "prompt 0 has token ids from 1 to 7: the model's vocabulary has ids 0 to 6"),
        ([[1, 2], [-1]], "prompt 1 has token ids from -1 to -1"),
    ],
)
def test_bad_prompts_are_named(prompts: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecodeEngine(tiny_model(context=64)).decode(prompts, beams())


def test_rows_end_where_all_angles_would_change() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
    model = tiny_model("phi3", rope_parameters=rope, sliding_window=None, original_max_position_embeddings=32)
    assert len(DecodeEngine(model).decode([[1] * 24], beams())[0].completions) == 4
    with pytest.raises(UserError, match=r"25 tokens \+ max_new_tokens=8 = 33, and the model's context has 32"):
        DecodeEngine(model).decode([[1] * 25], beams())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_prompt_may_fill_the_context(kind: str) -> None:
    group = DecodeEngine(bias_token(tiny_model(kind, context=64), EOS, -1e4)).decode([[1] * 56], beams())[0]
    assert [len(completion.tokens) for completion in group.completions] == [8] * 4


@pytest.mark.parametrize(
    ("seeds", "message"),
    [(None, "needs 2 seeds, found 0"), ([1], "needs 2 seeds, found 1"), ([1, -3], "seed -3: expected 0 or more")],
)
def test_samples_need_a_seed_per_prompt(seeds: list[int] | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecodeEngine(tiny_model()).decode([[1], [2]], beams(mode="sample"), seeds)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "greedy"}, "search='greedy': expected one of beam, sample, stochastic_beam"),
        ({"group_size": 0}, "group_size=0"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": 0.5}, "temperature=0.5: beams are searched at temperature 1"),
        ({"eos_token_id": 7}, "eos_token_id=7: the model's vocabulary has ids 0 to 6"),
        ({"pad_token_id": -1}, "pad_token_id=-1"),
    ],
)
def test_bad_settings_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecodeEngine(tiny_model()).decode([[1]], beams(**options))


def _two_layered_head() -> PreTrainedModel:
    model = tiny_model()
    model.set_output_embeddings(torch.nn.Sequential(model.get_output_embeddings(), torch.nn.Tanh()))
    return model


def _flash_attention() -> PreTrainedModel:
    model = tiny_model()
    model.config._attn_implementation = "flash_attention_2"
    return model


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: GPT2LMHeadModel(
                GPT2Config(vocab_size=11, n_embd=16, n_layer=1, n_head=2, add_cross_attention=True)
            ),
            "cross-attention",
        ),
        (lambda: GPT2Model(GPT2Config(vocab_size=11, n_embd=16, n_layer=1, n_head=2)), "GPT2Model .*no language"),
    ],
)
def test_models_that_cannot_be_decoded_exactly_are_refused_by_name(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        DecodeEngine(build())


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (
            lambda: AutoModelForCausalLM.from_config(BloomConfig(vocab_size=11, hidden_size=16, n_layer=1, n_head=2)),
            r"BloomForCausalLM \(model_type 'bloom'\): the fast tree does not know this type",
        ),
        (
            lambda: AutoModelForCausalLM.from_config(
                LlamaConfig(**SMALL, rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0})
            ),
            "LlamaForCausalLM .*rope_type 'dynamic'",
        ),
        (_two_layered_head, "GPT2LMHeadModel .*head is a Sequential, the fast tree needs a plain linear layer"),
        (_flash_attention, "GPT2LMHeadModel .*'flash_attention_2' takes no tree-shaped mask"),
    ],
)
def test_what_the_tree_does_not_serve_takes_the_plain_path_with_a_reason(build: Any, reason: str) -> None:
    model = build()
    service = service_of(model)
    assert service.engine == "plain" and re.search(reason, service.reason) and "slow path" in service.note
    with pytest.raises(UserError, match=r"rollout\.engine=tree: "):
        service_of(model, "tree")
    with pytest.raises(UserError, match="dtype bf16 is for the fast tree"):
        DecodeEngine(model, precision="bf16")
    assert service_of(tiny_model(), "plain").engine == "plain" and not service_of(tiny_model()).note


def test_rounded_weights_are_refused() -> None:
    with pytest.raises(UserError, match=r"torch\.bfloat16: load it with dtype=torch\.float32"):
        DecodeEngine(tiny_model().to(torch.bfloat16))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_gpu_finds_the_same_beams_and_samples(kind: str) -> None:
    model = tiny_model(kind, vocabulary=13, seed=2)
    prompts = ragged_prompts(9, 13, seed=1, longest=20)
    requests = [beams(6, 20), beams(6, 20, mode="sample")]
    expected = [DecodeEngine(model).decode(prompts, settings, seeds=range(9)) for settings in requests]
    found = [DecodeEngine(model.cuda()).decode(prompts, settings, seeds=range(9)) for settings in requests]
    for groups, others in zip(found, expected, strict=True):
        for group, other in zip(groups, others, strict=True):
            assert_close(group, other)
