"""What a reward model's folder holds can be anything: it is used, or refused in one line, and never fetches or runs."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import mutated
from hostile_folders import Change, becomes, in_parts, index, network, refusal, says, sparse, weights
from tiny_rewards import TEMPLATE, tokenizer, write_model
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    Gemma2Config,
    Gemma2ForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    OPTConfig,
    OPTForSequenceClassification,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from bgrpo.errors import UserError
from bgrpo.scoring.reward_model import RewardModel
from bgrpo.scoring.reward_training import load_base
from bgrpo.scoring.scored_text import Item

__all__ = ["network"]
MUTATIONS = 400
BIAS = "classifier.bias"
NAN, LARGE = float("nan"), "bert.encoder.layer.0.output.dense.weight"
ITEM = Item("w1 w2", "w3")
SHAPE: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3, "num_labels": 1,
}  # fmt: skip
DECODER = {**SHAPE, "num_key_value_heads": 1, "head_dim": 8}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A BERT, a Llama with a template, the BERT in two files, and an encoder without a head."""
    root = tmp_path_factory.mktemp("rewards")
    write_model(root / "bert")
    write_model(root / "llama", "llama", template=TEMPLATE)
    write_model(root / "encoder", kind="encoder")
    in_parts(Path(shutil.copytree(root / "bert", root / "parts")))
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["bert"], tmp_path / "reward"))


def test_any_mutation_of_any_file_is_used_or_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, network: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    contents = {kind: {file.name: file.read_bytes() for file in path.iterdir()} for kind, path in folders.items()}
    used = 0
    for seed in range(MUTATIONS):
        draw = random.Random(seed)
        kind = draw.choice(sorted(contents))
        chosen = draw.choice(sorted(contents[kind]))
        broken = tmp_path / "broken"
        broken.mkdir()
        for name, content in contents[kind].items():
            (broken / name).write_bytes(mutated(content, draw) if name == chosen else content)
        try:
            if kind == "encoder":
                load_base(str(broken), seed=0)
            else:
                (score,) = RewardModel(str(broken)).score([ITEM])
                assert (score.value is None) == bool(score.failure) and len(score.failure) < 700
            used += 1
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 700, (seed, chosen, error)
        except BaseException as error:
            raise AssertionError(f"mutation {seed} of {chosen} of {kind}") from error
        shutil.rmtree(broken)
    assert MUTATIONS / 20 < used < MUTATIONS / 2, "mutations that do nothing, or only the same"
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("load", [RewardModel, lambda path: load_base(path, 0)], ids=["reward model", "base model"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (index("weights.bin"), "expected a"),
        (index("../other.safetensors"), "expected a"),
        (index("/etc/model.safetensors"), "expected a"),
        (index("absent.safetensors"), "no such file"),
        (says("config.json", quantization_config={"quant_method": "bitsandbytes"}), "quantization_config"),
        (says("config.json", auto_map={"AutoModel": "owner/code--x.Y"}), "auto_map"),
        (says("config.json", model_type="owner/model"), "cannot be loaded"),
        (says("config.json", model_type="gemma3"), "it reads images"),
        (says("config.json", model_type="yoso"), "cannot be loaded"),
        (says("config.json", model_type=["bert"]), "cannot be loaded"),
        (says("config.json", pad_token_id=10**6), "pad_token_id"),
        (says("config.json", pad_token_id=-1), "pad_token_id"),
        (says("config.json", num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
        (says("config.json", num_hidden_layers=60_000), "asks for more than"),
        (says("config.json", num_hidden_layers=3), "lacks 16 weights"),
        (says("config.json", num_hidden_layers=1), "beyond config.json, 16 weights"),
        (says("config.json", vocab_size=60_000), "another shape"),
        (says("config.json", max_position_embeddings=1 << 24), "another shape"),
        (says("config.json", hidden_size=1 << 40), "another shape"),
        (says("config.json", type_vocab_size=0), "another shape"),
        (says("config.json", layer_norm_eps=NAN), "outputs are not numbers"),
        (says("adapter_config.json", base_model_name_or_path="owner/base"), "adapter"),
        (says("tokenizer_config.json", cls_token="<end>"), "no such token"),
        (becomes("tokenizer.json", sparse(500 << 20)), "bytes, expected at most"),
        (becomes("model.safetensors", sparse(1 << 43)), "bytes, expected at most"),
        (becomes("model.safetensors", lambda path: path.symlink_to("/dev/zero")), "pipe, socket or device"),
        (becomes("config.json", os.mkfifo), "pipe, socket or device"),
        (becomes("chat_template.jinja", os.mkfifo), "pipe, socket or device"),
        (becomes("tokenizer.json", Path.mkdir), "Is a directory"),
        (weights(lambda w: w[BIAS].fill_(NAN)), "classifier.bias is not finite"),
        (weights(lambda w: w.update({BIAS: torch.ones(1, dtype=torch.int32)})), "is I32"),
        (weights(lambda w: w.update({LARGE: torch.ones(2, 2)})), "another shape"),
        (weights(lambda w: w.pop(LARGE)), "lacks 1 weights"),
        (weights(lambda w: w.update({"bert.encoder.layer.9.x": torch.ones(2)})), "beyond config.json"),
        (weights(lambda w: [tensor.fill_(3e38) for tensor in w.values()]), "outputs are not numbers"),
    ],
)  # fmt: skip
def test_what_is_refused(folder: Path, load: Any, change: Change, message: str, network: list[str]) -> None:
    change(folder)
    found = refusal(folder, load)
    assert message in found.replace("beyond config.json, 16 weights that are no head", "beyond config.json, 16 weights")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (says("config.json", num_labels=10**12), "num_labels"),
        (says("config.json", id2label={"0": "a", "5": "b"}), "id2label"),
        (says("config.json", id2label={"x": "a"}), "id2label"),
        (says("config.json", id2label=["a"]), "id2label"),
        (says("config.json", id2label={"0": "a", "1": "b"}), "another shape"),
        (says("config.json", problem_type="owner/x"), "problem_type"),
        (says("config.json", problem_type=["x"]), "problem_type"),
        (says("config.json", problem_type="single_label_classification"), "cannot be loaded"),
        (weights(lambda w: w.pop(BIAS)), "no trained classification head"),
        (weights(lambda w: w.update({"lm_head.weight": torch.ones(2, 2)})), "beyond config.json"),
    ],
)
def test_what_is_wrong_with_a_head(folder: Path, change: Change, message: str, network: list[str]) -> None:
    change(folder)
    assert message in refusal(folder, RewardModel)


def test_heads_and_poolers_of_other_trainings_are_left_out_of_a_base(folder: Path) -> None:
    expected = load_base(str(folder), 0)[0].state_dict()
    weights(lambda w: w.update({"cls.predictions.bias": torch.ones(97), "lm_head.weight": torch.ones(2, 2)}))(folder)
    found = load_base(str(folder), 0)[0].state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    "change",
    [
        says("config.json", attn_implementation="owner/kernel", _attn_implementation="owner/kernel"),
        says("config.json", _attn_implementation_internal="owner/kernel", experts_implementation="owner/x"),
        says("config.json", name_or_path="owner/model", _name_or_path="owner/model", _commit_hash="x"),
        says("config.json", return_dict=False, output_attentions=True, output_hidden_states=True, dtype="float64"),
        says("config.json", transformers_weights="weights.bin", fusion_config={"patch_embeddings": True}),
        says("tokenizer_config.json", auto_map={"AutoTokenizer": ["owner/code--x.Y", None]}, tokenizer_class="Mine"),
        says("tokenizer_config.json", tokenizer_file="/etc/passwd", vocab_file="/etc/passwd", fix_mistral_regex=True),
        says("tokenizer.json", truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst",
                                           "stride": 0}),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."),
        weights(lambda w: w.update({"bert.embeddings.position_ids": torch.arange(64)[None]})),
        in_parts,
    ],
)  # fmt: skip
def test_what_does_not_matter(
    folder: Path, change: Change, network: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The score is the same, up to the last bits, which depend on where in memory the file puts a weight."""
    (expected,) = RewardModel(str(folder)).score([ITEM])
    change(folder)
    (found,) = RewardModel(str(folder)).score([ITEM])
    assert found.value == pytest.approx(expected.value, rel=1e-5) and expected.value is not None
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "made",
    [
        lambda: RobertaForSequenceClassification(RobertaConfig(**SHAPE)),
        lambda: DistilBertForSequenceClassification(
            DistilBertConfig(vocab_size=97, dim=16, n_layers=1, n_heads=2, hidden_dim=24, num_labels=1)
        ),
        lambda: DebertaV2ForSequenceClassification(
            DebertaV2Config(**SHAPE, relative_attention=True, pos_att_type=["p2c", "c2p"])
        ),
        lambda: ModernBertForSequenceClassification(
            ModernBertConfig(**SHAPE, cls_token_id=2, sep_token_id=3, global_attn_every_n_layers=2)
        ),
        lambda: OPTForSequenceClassification(OPTConfig(**SHAPE, ffn_dim=24, word_embed_proj_dim=16)),
        lambda: Qwen2ForSequenceClassification(Qwen2Config(**SHAPE, num_key_value_heads=1)),
        lambda: Gemma2ForSequenceClassification(Gemma2Config(**DECODER)),
    ],
)
def test_other_architectures_score_as_transformers_does(made: Any, tmp_path: Path, network: list[str]) -> None:
    model: PreTrainedModel = made()
    model.save_pretrained(tmp_path / "m")
    tokenizer("llama").save_pretrained(tmp_path / "m")
    found = RewardModel(str(tmp_path / "m"))
    (score,) = found.score([ITEM])
    expected = type(model).from_pretrained(tmp_path / "m").eval()
    with torch.inference_mode():
        ids = torch.tensor([found.tokenizer("w1 w2w3")["input_ids"]])
        assert score.value == expected(input_ids=ids).logits.item()
    assert load_base(str(tmp_path / "m"), 0)[0].config.num_labels == 1


def test_special_tokens_that_the_files_leave_to_the_class_are_found(folder: Path) -> None:
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        (folder / name).unlink(missing_ok=True)
    (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 32}))
    model = RewardModel(str(folder))
    assert (model.tokenizer.cls_token, model.tokenizer.pad_token, model.limit) == ("[CLS]", "[PAD]", 32)
