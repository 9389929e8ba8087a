"""Folders of encoder-decoders: heads tied and untied, rows beyond the tokenizer, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_t5 import write_t5
from transformers import AutoModelForSeq2SeqLM

from bgrpo.errors import UserError
from bgrpo.policies.flat_weights import flatten_parameters, load_flat_parameters
from bgrpo.policies.io import empty_copy, load_policy, save_policy
from bgrpo.policies.text import encode_texts

IDS = torch.tensor([[4, 9, 1]])
ANSWER = torch.tensor([[0, 7, 30]])


@pytest.mark.parametrize("kind", ["t5", "t5 untied", "umt5", "bart"])
def test_round_trips_and_replicas_are_exact(kind: str, tmp_path: Path) -> None:
    written = write_t5(tmp_path / "first", kind)
    wanted = written(input_ids=IDS, decoder_input_ids=ANSWER).logits
    policy = load_policy(str(tmp_path / "first"))
    assert policy.model.config.vocab_size == 31 and policy.model.generation_config.decoder_start_token_id == 0
    found = policy.model(input_ids=IDS, decoder_input_ids=ANSWER).logits
    assert torch.allclose(found, wanted[..., :31], atol=1e-6)
    save_policy(policy.model, policy.tokenizer, tmp_path / "again")
    for again in (
        load_policy(str(tmp_path / "again")).model,
        AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again").eval(),
    ):
        assert torch.equal(again(input_ids=IDS, decoder_input_ids=ANSWER).logits, found)
    replica = empty_copy(policy.model).eval()
    load_flat_parameters(replica, flatten_parameters(policy.model))
    assert torch.equal(replica(input_ids=IDS, decoder_input_ids=ANSWER).logits, found)


def test_a_text_ends_as_the_encoder_knows_it(tmp_path: Path) -> None:
    write_t5(tmp_path)
    policy = load_policy(str(tmp_path))
    assert encode_texts(policy.tokenizer, ["w1 w2", "w3 </s>"]) == [[4, 5, 1], [6, 1]]
    assert encode_texts(policy.tokenizer, ["w1 w2"], continued=True) == [[4, 5]]


@pytest.mark.parametrize(
    ("says", "message"),
    [
        ({"decoder_start_token_id": None}, "names no decoder_start_token_id"),
        ({"decoder_start_token_id": 31}, "decoder_start_token_id=31: the tokenizer has ids 0 to 30"),
        ({"decoder_start_token_id": "0"}, "decoder_start_token_id='0'"),
        ({"num_decoder_layers": 3}, "another shape"),
        ({"is_encoder_decoder": False}, ""),
        ({"relative_attention_num_buckets": 64}, "another shape"),
        ({"model_type": "led"}, "'led' cannot be loaded: of encoder-decoders, bart,"),
        ({"auto_map": {"AutoModelForSeq2SeqLM": "evil.Model"}, "model_type": "evil"}, "none is run"),
    ],
)
def test_what_is_wrong_is_one_line(says: dict[str, object], message: str, tmp_path: Path) -> None:
    write_t5(tmp_path)
    for name in ("config.json", "generation_config.json"):
        path = tmp_path / name
        path.write_text(json.dumps(json.loads(path.read_text()) | (says if name == "config.json" else {})))
    if "decoder_start_token_id" in says:
        (tmp_path / "generation_config.json").unlink()
    if not message:  # a T5 is one whatever its file says
        assert load_policy(str(tmp_path)).model.config.is_encoder_decoder
        return
    with pytest.raises(UserError, match=message) as caught:
        load_policy(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_weights_that_are_no_numbers(tmp_path: Path) -> None:
    write_t5(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["encoder.block.0.layer.0.SelfAttention.q.weight"][0, 0] = torch.nan
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match="is not finite in fp32"):
        load_policy(str(tmp_path))
