"""LoRA against peft and against dense weights: logits, gradients, merging, and files that peft reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from decoding.tiny_models import tiny_model
from learner_cases import TOKENIZER, VOCABULARY
from peft import PeftModel
from torch.func import functional_call
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bgrpo.decoding.support import service_of
from bgrpo.errors import UserError
from bgrpo.learning.packing import pack_groups
from bgrpo.learning.padded_rows import pad_groups
from bgrpo.policies.adapter import NO_ADAPTER, Adapter, MergedModel, adapter_of, merged
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.lora import adapted_layers, attach, check_exact

IDS = torch.tensor([[3, 5, 7, 2, 9, 4]])
GROUPS = [([3, 5, 7], [[2, 9, 4], [2, 8]]), ([6, 2], [[5, 5, 3], [7]])]
KINDS = ("gpt2", "gpt_neox", "llama", "gemma2", "qwen3_moe", "mamba")
LAYERS: dict[str, Any] = {"mamba": ["in_proj", "x_proj"]}  # it reads the weights of dt_proj by itself
RANK, ALPHA = 2, 5.0


def with_adapter(kind: str, seed: int = 1, dtype: torch.dtype = torch.float64) -> tuple[PreTrainedModel, Any]:
    """A tiny model, and the same with an adapter of all its linear layers that changes them a lot."""
    base = tiny_model(kind, VOCABULARY, seed=seed).to(dtype)
    learning = attach(base, adapted_layers(base, LAYERS.get(kind, "all-linear"), RANK), RANK, ALPHA, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for _, b_OR in adapter_of(learning).factors.values():
        b_OR.data.copy_(0.3 * torch.randn(b_OR.shape, generator=generator, dtype=torch.float64))
    return base, learning


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("kind", KINDS)
def test_the_merged_model_computes_what_peft_does_and_a_new_adapter_changes_nothing(kind: str) -> None:
    base, learning = with_adapter(kind)
    before = logits(base)
    adapter = adapter_of(learning)
    fresh = attach(base, list(adapter.factors), RANK, ALPHA, seed=7)
    assert torch.equal(logits(fresh), before), "an adapter that was not learned yet adds exactly 0"
    torch.testing.assert_close(logits(merged(base, adapter)), logits(learning), rtol=1e-10, atol=1e-10)
    assert (logits(learning) - before).abs().max() > 0.1 and torch.equal(logits(base), before)
    own = {weight.data_ptr() for weight in base.parameters()}
    frozen = [weight for weight in learning.parameters() if not weight.requires_grad]
    assert {weight.data_ptr() for weight in frozen} == own, "the weights are the base's own, no copy"
    check_exact(base, list(adapter.factors), RANK, ALPHA)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen3_moe", "mamba"])
def test_gradients_of_the_factors_are_those_of_dense_weights(kind: str) -> None:
    """Of the packed update, and of padded rows, against autograd through W0 + scale × B A written out."""
    base, learning = with_adapter(kind)
    learning.eval()
    weights_BC = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factors = {
        path: tuple(factor.detach().clone().requires_grad_() for factor in pair)
        for path, pair in adapter_of(learning).factors.items()
    }
    dense = dict(base.named_parameters())
    for path, (a_RI, b_OR) in factors.items():
        product = ALPHA / RANK * b_OR @ a_RI
        weight = dense[f"{path}.weight"].detach()
        dense[f"{path}.weight"] = weight + (product.t() if isinstance(base.get_submodule(path), Conv1D) else product)
    rows = [(prompt, completion) for prompt, completions in GROUPS for completion in completions]
    total = torch.zeros(())
    for (prompt, completion), weights_C in zip(rows, weights_BC, strict=True):
        ids = {"input_ids": torch.tensor([prompt + completion]), "use_cache": False}
        found = functional_call(base, dense, kwargs=ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        picked = found.gather(1, torch.tensor(completion)[:, None]).squeeze(1)
        total = total + (picked * weights_C[: len(completion)]).sum()
    total.backward()

    layouts: list[Callable[..., Any]] = [pad_groups]
    if service_of(base).engine == "tree":
        layouts.append(pack_groups)
    for lay_out in layouts:
        learning.zero_grad()
        logps_BC, _ = lay_out(GROUPS, "cpu").logps(learning)
        (logps_BC * weights_BC).sum().backward()
        for path, pair in adapter_of(learning).factors.items():
            for own, expected in zip(pair, factors[path], strict=True):
                assert (own.grad - expected.grad).norm() <= 1e-5 * expected.grad.norm()  # some norms round to fp32
        assert all(weight.grad is None for weight in learning.parameters() if not weight.requires_grad)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_peft_and_transformers_read_what_is_written(kind: str, tmp_path: Path) -> None:
    base, learning = with_adapter(kind, dtype=torch.float32)
    save_policy(base, TOKENIZER, tmp_path / "base")
    policy = load_policy(str(tmp_path / "base"))
    learning = attach(policy.base, list(adapter_of(learning).factors), RANK, ALPHA, adapter_of(learning))
    save_policy(learning, policy.tokenizer, tmp_path / "adapter")

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    assert torch.equal(logits(PeftModel.from_pretrained(plain, tmp_path / "adapter")), logits(learning))
    again = load_policy(str(tmp_path / "adapter"))
    assert (
        again.adapter is not None and again.adapter.to_buffer().tobytes() == adapter_of(learning).to_buffer().tobytes()
    )
    assert torch.equal(logits(again.base), logits(policy.model))
    torch.testing.assert_close(logits(again.model), logits(learning), rtol=1e-5, atol=1e-5)
    save_policy(again.model, again.tokenizer, tmp_path / "whole")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "whole")), logits(again.model))
    files = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert {
        "adapter_config.json",
        "adapter_model.safetensors",
        "tokenizer.json",
    } <= files and "config.json" not in files


def test_peft_s_own_folder_is_read(tmp_path: Path) -> None:
    """With the keys that peft writes, rank-stabilised, of two layers' names."""
    from peft import LoraConfig, get_peft_model

    base = tiny_model("llama", VOCABULARY, seed=2)
    save_policy(base, TOKENIZER, tmp_path / "base")
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    settings = LoraConfig(
        r=4, lora_alpha=6, use_rslora=True, target_modules=["q_proj", "down_proj"], init_lora_weights=False,
        task_type="CAUSAL_LM", lora_dropout=0.1,
    )  # fmt: skip
    theirs = get_peft_model(plain, settings)
    theirs.save_pretrained(tmp_path / "adapter")
    policy = load_policy(str(tmp_path / "adapter"))
    assert policy.adapter is not None and policy.adapter.scale == pytest.approx(3) and len(policy.adapter.factors) == 4
    torch.testing.assert_close(logits(policy.model), logits(theirs), rtol=1e-5, atol=1e-5)


def test_versions_do_not_drift_and_travel_alone() -> None:
    base, learning = with_adapter("llama", dtype=torch.float32)
    adapter = adapter_of(learning)
    buffer = adapter.to_buffer()
    assert 4 * adapter.numbers < buffer.size < 4 * adapter.numbers + 400 * len(adapter.factors)
    replica = MergedModel(base, adapter.factors.keys())
    first = [logits(replica.model)]
    for received in (Adapter.from_buffer(buffer), NO_ADAPTER, Adapter.from_buffer(buffer), NO_ADAPTER):
        replica.load(received)
        first.append(logits(replica.model))
    assert torch.equal(first[0], logits(base)) and torch.equal(first[2], first[0]) and torch.equal(first[4], first[0])
    assert torch.equal(first[1], first[3]) and not torch.equal(first[1], first[0])
    for wrong in (buffer[:-1], buffer[9:], np.zeros(3, np.uint8)):
        with pytest.raises(ValueError, match="no adapter"):
            Adapter.from_buffer(wrong)
    with pytest.raises(ValueError, match="other layers"):
        MergedModel(base, list(adapter.factors)[:1]).load(adapter)


@pytest.mark.parametrize(
    ("wanted", "rank", "told"),
    [
        (["q_prj"], 2, "q_prj: there is no such layer; the linear layers of LlamaForCausalLM are q_proj, .*'q_proj'?"),
        (["norm"], 2, "norm: is a LlamaRMSNorm, which takes no adapter"),
        (["lm_head"], 2, "lm_head is the head of LlamaForCausalLM, which is left as it is"),
        (["embed_tokens"], 2, "is a Embedding, which takes no adapter"),
        ("all-linear", 17, r"learner.lora.rank=17: model.layers.0.self_attn.k_proj takes 32 to 16 .* at most 16"),
    ],
)
def test_layers_that_cannot_learn_are_refused(wanted: Any, rank: int, told: str) -> None:
    with pytest.raises(UserError, match=told):
        adapted_layers(tiny_model("llama", VOCABULARY, seed=0), wanted, rank)


def test_layers_are_found_by_name_or_path() -> None:
    base = tiny_model("llama", VOCABULARY, seed=0)
    assert len(adapted_layers(base, "all-linear", 2)) == 14
    paths = adapted_layers(base, ["q_proj", "model.layers.1.mlp.up_proj", "q_proj"], 2)
    assert paths == [*(f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)), "model.layers.1.mlp.up_proj"]


def test_a_model_that_reads_weights_past_their_layer_is_refused() -> None:
    base = tiny_model("mamba", VOCABULARY, seed=0)
    with pytest.raises(UserError, match=r"reads the weights of dt_proj by itself.*target_modules=\[in_proj, x_proj\]"):
        check_exact(base, adapted_layers(base, "all-linear", RANK), RANK, ALPHA)
    check_exact(base, adapted_layers(base, ["in_proj", "x_proj"], RANK), RANK, ALPHA)
    with pytest.raises(UserError, match=r"takes no such adapter.*'out_proj' is incompatible"):
        attach(base, adapted_layers(base, ["out_proj"], RANK), RANK, ALPHA)
