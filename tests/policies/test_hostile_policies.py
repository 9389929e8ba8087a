"""What a policy's folder holds can be anything: it is used, or refused in one line, and it never fetches or runs."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from decoding.tiny_models import FAMILIES, PLAIN, tiny_model
from hostile_files import mutated
from hostile_folders import Change, becomes, in_parts, index, network, refusal, says, sparse, weights
from transformers import LlamaConfig, LlamaForCausalLM

from bgrpo.decoding import DecodeEngine, DecodeSettings
from bgrpo.decoding.support import service_of
from bgrpo.errors import UserError
from bgrpo.policies.io import load_policy, save_policy
from bgrpo.policies.model import build_policy
from bgrpo.policies.text import decode_completion, encode_texts, end_tokens
from bgrpo.runs.preparation import check_policy
from bgrpo.tasks.polynomial.tokenizer import build_tokenizer, tokenizer_from_tokens

__all__ = ["network"]
TOKENIZER = build_tokenizer(0, 0)
MUTATIONS = 500
BIAS = "transformer.ln_f.bias"


def replaces(pattern: dict[str, str], content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


def sequence(kind: str, steps: list[dict[str, Any]]) -> dict[str, Any]:
    return {"type": "Sequence", kind: steps}


def template_of(ends: int, name: str = "a") -> dict[str, Any]:
    """A post-processor that writes a token so many times, and ``name`` before a pair."""
    text, token = {"Sequence": {"id": "A", "type_id": 0}}, {"SpecialToken": {"id": "a", "type_id": 0}}
    known = {"a": {"id": "a", "ids": [1], "tokens": ["a"]}}
    pair = [{"SpecialToken": {"id": name, "type_id": 0}}, text, {"Sequence": {"id": "B", "type_id": 0}}]
    return {"type": "TemplateProcessing", "single": [text, *ends * [token]], "pair": pair, "special_tokens": known}


GROWS = replaces({"String": "P"}, "PP")
CHARSMAP = {"type": "Precompiled", "precompiled_charsmap": "/////w=="}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GPT-2, a Llama with a padded vocabulary, and the same in two files with an index."""
    root = tmp_path_factory.mktemp("policies")
    save_policy(build_policy(TOKENIZER, 1, 2, 8, 16, 0), TOKENIZER, root / "gpt2")
    shape = LlamaConfig(
        vocab_size=24, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0,
        num_key_value_heads=1, bos_token_id=None, eos_token_id=1, max_position_embeddings=32,
    )  # fmt: skip
    save_policy(LlamaForCausalLM(shape), TOKENIZER, root / "llama")
    in_parts(Path(shutil.copytree(root / "llama", root / "parts")))
    (root / "parts" / "special_tokens_map.json").write_text('{"eos_token": {"content": "⁇"}}', "utf-8")
    return {path.name: path for path in root.iterdir()}


@pytest.fixture
def folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(folders["gpt2"], tmp_path / "policy"))


def test_any_mutation_of_any_file_is_used_or_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, network: list[str]
) -> None:
    contents = {kind: {file.name: file.read_bytes() for file in path.iterdir()} for kind, path in folders.items()}
    used = 0
    for seed in range(MUTATIONS):
        draw = random.Random(seed)
        files = contents[draw.choice(sorted(contents))]
        chosen = draw.choice(sorted(files))
        broken = tmp_path / "broken"
        broken.mkdir()
        for name, content in files.items():
            (broken / name).write_bytes(mutated(content, draw) if name == chosen else content)
        try:
            policy = check_policy(str(broken))
            prompts = encode_texts(policy.tokenizer, ["+ P 1"])
            settings = DecodeSettings("beam", 2, 2, end_tokens(policy.tokenizer), policy.tokenizer.pad_token_id)
            group = DecodeEngine(policy.model, compiled=False).decode(prompts, settings)[0]
            [decode_completion(policy.tokenizer, completion.tokens) for completion in group.completions]
            save_policy(policy.model, policy.tokenizer, tmp_path / "saved")
            used += 1
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 700, (seed, chosen, error)
        except BaseException as error:
            raise AssertionError(f"mutation {seed} of {chosen}") from error
        shutil.rmtree(broken)
    assert MUTATIONS / 20 < used < MUTATIONS / 2, "mutations that do nothing, or only the same"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (index("weights.bin"), "expected a"),
        (index("../weights.bin"), "expected a"),
        (index("../other.safetensors"), "expected a"),
        (index(".hidden.safetensors"), "expected a"),
        (index("sub/model.safetensors"), "expected a"),
        (index("/etc/model.safetensors"), "expected a"),
        (index("..\\other.safetensors"), "expected a"),
        (index("x.safetensors\n"), "expected a"),
        (index("absent.safetensors"), "no such file"),
        (index(5), "expected a"),
        (says("config.json", quantization_config={"quant_method": "bitsandbytes"}), "quantization_config"),
        (says("config.json", per_layer_config={"0": {"n_head": 1}}), "per_layer_config"),
        (says("config.json", model_type="gemma2"), "another shape"),
        (says("config.json", model_type="owner/model"), "cannot be loaded: no such text model"),
        (says("config.json", model_type=["gpt2"]), "cannot be loaded: no such text model"),
        (says("adapter_config.json", base_model_name_or_path="owner/base"), "adapter"),
        (says("tokenizer_config.json", eos_token="<end>"), "no such token"),
        (says("config.json", n_layer=100_000), "n_layer=100000"),
        (says("config.json", n_layer=10**12), "n_layer=1000000000000"),
        (says("config.json", num_hidden_layers=10**9), "num_hidden_layers=1000000000"),
        (says("config.json", vocab_size=10**9), "another shape"),
        (says("config.json", n_embd=10**8), "another shape"),
        (says("config.json", n_positions=10**9), "another shape"),
        (says("config.json", n_inner=10**9), "another shape"),
        (says("tokenizer.json", normalizer=sequence("normalizers", 16 * [GROWS])), "text 10^4.8 times as long"),
        (says("tokenizer.json", normalizer=sequence("normalizers", 9_999 * [GROWS])), "10^3010.0 times"),
        (says("tokenizer.json", normalizer={"type": "Prepend", "prepend": 5_000 * "P"}), "10^3.7 times"),
        (says("tokenizer.json", normalizer=replaces({"Regex": "P*"}, 5_000 * "P")), "10^3.7 times"),
        (says("tokenizer.json", normalizer=CHARSMAP), "precompiled_charsmap is damaged"),
        (says("tokenizer.json", decoder=sequence("decoders", 4 * [replaces({"String": " "}, 99 * " ")])), "decoder"),
        (says("tokenizer.json", post_processor=template_of(9_999)), "post_processor can make a text 10^4.0 times"),
        (says("tokenizer.json", post_processor=template_of(0, "zz")), "names 'zz', which special_tokens lacks"),
        (becomes("tokenizer.json", sparse(500 << 20)), "524,288,000 bytes, expected at most"),
        (becomes("config.json", sparse(1 << 40)), "bytes, expected at most"),
        (becomes("model.safetensors", sparse(1 << 43)), "bytes, expected at most"),
        (becomes("model.safetensors", lambda path: path.write_bytes(b"\xff" * 16)), "first bytes are damaged"),
        (becomes("model.safetensors", lambda path: path.symlink_to("/dev/zero")), "pipe, socket or device"),
        (becomes("model.safetensors", os.mkfifo), "pipe, socket or device"),
        (becomes("tokenizer.json", os.mkfifo), "pipe, socket or device"),
        (becomes("config.json", os.mkfifo), "pipe, socket or device"),
        (becomes("generation_config.json", os.mkfifo), "pipe, socket or device"),
        (becomes("chat_template.jinja", lambda path: path.symlink_to("/dev/zero")), "pipe, socket or device"),
        (becomes("tokenizer.json", Path.mkdir), "Is a directory"),
        (weights(lambda w: w["transformer.wte.weight"].fill_(float("nan"))), "transformer.wte.weight is not finite"),
        (weights(lambda w: w[BIAS][3:4].fill_(float("inf"))), "ln_f.bias is not finite"),
        (weights(lambda w: w.update({BIAS: torch.full((8,), 1e5).half()})), "ln_f.bias is not finite"),
        (weights(lambda w: w.update({BIAS: torch.full((8,), 1e300, dtype=torch.float64)})), "is not finite"),
        (weights(lambda w: w.update({BIAS: torch.ones(8, dtype=torch.int32)})), "is I32"),
        (weights(lambda w: w.update({BIAS: torch.ones(8, dtype=torch.bool)})), "is BOOL"),
        (weights(lambda w: w["transformer.ln_f.weight"].fill_(3e38)), "logits are not numbers"),
        (weights(lambda w: w.update({"more": torch.ones(2)})), "beyond config.json"),
        (weights(lambda w: w.pop("transformer.wpe.weight")), "lacks 1 weights, first 'transformer.wpe.weight'"),
        (says("config.json", layer_norm_epsilon=float("nan")), "logits are not numbers"),
    ],
)  # fmt: skip
def test_what_is_refused(folder: Path, change: Change, message: str, network: list[str]) -> None:
    change(folder)
    assert message in refusal(folder, load_policy)


@pytest.mark.parametrize(
    "change",
    [
        says("config.json", attn_implementation="owner/kernel", _attn_implementation="owner/kernel"),
        says("config.json", _attn_implementation_internal="owner/kernel", experts_implementation="owner/kernel"),
        says("config.json", text_config={"vocab_size": 5, "attn_implementation": "owner/kernel"}, decoder={"a": 1}),
        says("config.json", auto_map={"AutoConfig": "owner/code--x.Y", "AutoModelForCausalLM": "x.Y"}),
        says("config.json", name_or_path="owner/model", _name_or_path="owner/model", _commit_hash="x"),
        says("config.json", num_labels=10**12, id2label={"0": "x"}, problem_type="regression"),
        says("config.json", return_dict=False, is_encoder_decoder=True, output_hidden_states=True, to_dict="x"),
        says("config.json", fusion_config={"patch_embeddings": True}, transformers_weights="weights.bin"),
        says("config.json", resid_pdrop=1, attn_pdrop=0.5, embd_pdrop=1),
        says("generation_config.json", custom_generate="owner/code", cache_implementation="owner/x", top_k=-5),
        says("tokenizer_config.json", auto_map={"AutoTokenizer": ["owner/code--x.Y", None]}, tokenizer_class="Mine"),
        says("tokenizer_config.json", tokenizer_file="/etc/passwd", vocab_file="/etc/passwd", gguf_file="x"),
        says("tokenizer_config.json", name_or_path="owner/model", is_local=False, fix_mistral_regex=True),
        says("tokenizer_config.json", chat_template="{% for i in range(99999999) %}{% endfor %}{{ ''.__class__ }}"),
        says("tokenizer_config.json", model_max_length=1, extra_special_tokens={"image_token": "<image>"}),
        says("tokenizer.json", padding={"strategy": {"Fixed": 10**6}, "direction": "Right", "pad_to_multiple_of": None,
                                        "pad_id": 0, "pad_type_id": 0, "pad_token": "□"}),
        says("tokenizer.json", truncation={"direction": "Right", "max_length": 1, "strategy": "LongestFirst",
                                           "stride": 0}),
        says("tokenizer.json", normalizer=sequence("normalizers", 9 * [replaces({"Regex": "x+"}, "x")])),
        lambda folder: (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/owned'\ntR."),
        lambda folder: [(folder / "custom_generate").mkdir(), (folder / "custom_generate" / "generate.py").touch()],
        in_parts,
    ],
)  # fmt: skip
def test_what_does_not_matter(
    folder: Path, change: Change, network: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    """The policy is the same as without it, also where it is saved again."""
    ids = torch.tensor([[2, 6, 9, 18, 1]])
    expected = load_policy(str(folder)).model(ids).logits
    change(folder)
    policy = load_policy(str(folder))
    assert torch.equal(policy.model(ids).logits, expected)
    assert torch.equal(policy.model.train()(ids).logits, expected)
    assert encode_texts(policy.tokenizer, ["+ P 1 2"]) == encode_texts(TOKENIZER, ["+ P 1 2"])
    save_policy(policy.model, policy.tokenizer, folder.parent / "again")
    assert torch.equal(load_policy(str(folder.parent / "again")).model(ids).logits, expected)
    assert capfd.readouterr() == ("", "")


def test_a_large_vocabulary_does_not_make_the_tokenizer_ask_the_hub(tmp_path: Path, network: list[str]) -> None:
    tokenizer = tokenizer_from_tokens([*TOKENIZER.get_vocab(), *(f"w{i}" for i in range(100_001))])
    save_policy(build_policy(tokenizer, 1, 1, 2, 8, 0), tokenizer, tmp_path / "large")
    assert len(load_policy(str(tmp_path / "large")).tokenizer) == 100_021


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ([], (1,)),
        ([says("generation_config.json", eos_token_id=[1, 5])], (1, 5)),
        ([says("config.json", eos_token_id=[5, 7])], (1, 5, 7)),
        ([says("config.json", eos_token_id=5), says("generation_config.json", eos_token_id=[7])], (1, 5, 7)),
        ([says("config.json", eos_token_id=None), says("generation_config.json", eos_token_id=None)], (1,)),
        ([lambda folder: (folder / "generation_config.json").unlink(), says("config.json", eos_token_id=6)], (1, 6)),
        ([lambda f: (f / "tokenizer_config.json").unlink(), says("special_tokens_map.json", eos_token="⁇")], (1,)),
    ],
)
def test_every_file_may_name_end_tokens(folder: Path, changes: list[Change], expected: tuple[int, ...]) -> None:
    for change in changes:
        change(folder)
    policy = load_policy(str(folder))
    assert end_tokens(policy.tokenizer) == expected
    save_policy(policy.model, policy.tokenizer, folder)
    assert end_tokens(load_policy(str(folder)).tokenizer) == expected
    assert decode_completion(policy.tokenizer, [9, 8, expected[-1], 8]) == "1 0"


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
@pytest.mark.parametrize("key", ["eos_token_id", "bos_token_id", "pad_token_id"])
@pytest.mark.parametrize("value", [-1, 20, 10**9, 1.5, "1", True, [1, 20], {"a": 1}])
def test_ids_that_are_no_tokens_are_refused(folder: Path, file: str, key: str, value: Any) -> None:
    says(file, **{key: value})(folder)
    assert key in refusal(folder, load_policy)


@pytest.mark.parametrize(
    ("kind", "mode"), [*((kind, "beam") for kind in sorted(FAMILIES | PLAIN)), ("gpt2", "sample"), ("falcon", "sample")]
)
def test_ids_without_a_text_are_never_generated(kind: str, mode: Any, tmp_path: Path) -> None:
    from bgrpo.learning.padded_rows import lay_out_of

    model = tiny_model(kind, vocabulary=33, seed=3)
    save_policy(model, TOKENIZER, tmp_path / kind)
    policy = load_policy(str(tmp_path / kind))
    assert torch.allclose(
        policy.model(torch.tensor([[2, 6, 9]])).logits, model(torch.tensor([[2, 6, 9]])).logits[..., :20], atol=1e-5
    )
    settings = DecodeSettings(mode, 40, 6, end_tokens(policy.tokenizer), policy.tokenizer.pad_token_id)
    group = DecodeEngine(policy.model).decode([[2, 6, 9]], settings, [7])[0]
    tokens = [completion.tokens for completion in group.completions]
    assert max(map(max, tokens)) < len(TOKENIZER)
    ended = {tuple(completion.tokens) for completion in group.completions if completion.finished}
    assert len({decode_completion(policy.tokenizer, tokens) for tokens in ended}) == len(ended)
    logps_BC, _ = lay_out_of(service_of(policy.model))([([2, 6, 9], tokens)], "cpu").logps(policy.model)
    for row, completion in zip(logps_BC, group.completions, strict=True):
        assert row[: len(completion.tokens)].tolist() == pytest.approx(completion.logprobs, abs=1e-4)
    save_policy(policy.model, policy.tokenizer, tmp_path / "again")
    assert load_policy(str(tmp_path / "again")).model.config.vocab_size == len(TOKENIZER)


def test_special_tokens_are_seen_by_the_checker() -> None:
    end, pad = TOKENIZER.eos_token_id, TOKENIZER.pad_token_id
    assert decode_completion(TOKENIZER, [6, 8, pad, end]) == "P 0 □"
    assert decode_completion(TOKENIZER, [pad, 6, 8, end]) == "□ P 0"


@pytest.mark.parametrize("how", ["post-processor", "add_bos_token"])
def test_what_comes_before_every_text_comes_before_prompts_but_not_answers(folder: Path, how: str) -> None:
    if how == "add_bos_token":
        says("tokenizer_config.json", add_bos_token=True, add_eos_token=True, bos_token="a", eos_token="⁇")(folder)
    else:
        ends = [{"SpecialToken": {"id": name, "type_id": 0}} for name in ("a", "⁇")]
        template = {
            "type": "TemplateProcessing",
            "single": [ends[0], {"Sequence": {"id": "A", "type_id": 0}}, ends[1]],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {
                name: {"id": name, "ids": [token], "tokens": [name]} for name, token in (("a", 18), ("⁇", 1))
            },
        }
        says("tokenizer.json", post_processor=template)(folder)
    tokenizer = load_policy(str(folder)).tokenizer
    assert encode_texts(tokenizer, ["P 1", "a P 1"]) == [[18, 6, 9], [18, 6, 9]]
    assert encode_texts(tokenizer, ["P 1"], continued=True) == [[6, 9]]


def test_texts_that_no_tokenizer_can_read_are_one_line() -> None:
    for text in ("\ud800", "a" * 10**6 + "\x00", "\x1b[2J"):
        with pytest.raises(UserError) as caught:
            encode_texts(TOKENIZER, [text])
        assert str(caught.value).isprintable() and len(str(caught.value)) < 400


def test_a_tokenizer_with_a_gap_is_refused(folder: Path) -> None:
    tree = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    tree["model"]["vocab"]["b"] = 25
    says("tokenizer.json", model=tree["model"])(folder)
    assert "whose ids are not 0 to 19" in refusal(folder, load_policy)
