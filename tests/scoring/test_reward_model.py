"""Reward models: what they score, that batches change no bit, and what is refused."""

from __future__ import annotations

import json
import math
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from tiny_rewards import TEMPLATE, WORDS, write_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from bgrpo.errors import UserError
from bgrpo.policies.io import SHIPPED_POLICY
from bgrpo.policies.model_files import read_model_files
from bgrpo.scoring.fixed_shapes import FixedShapes
from bgrpo.scoring.reward_model import RewardModel, encode, kept_tokens, same_weights
from bgrpo.scoring.scored_text import Item

FAMILIES = [("bert", None), ("llama", TEMPLATE)]
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=28).map(" ".join), min_size=1, max_size=12)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("rewards")
    return {family: write_model(root / family, family, template=template) for family, template in FAMILIES}


def items(texts: list[str]) -> list[Item]:
    return [Item("w1 w2 ", text) for text in texts]


def values(model: RewardModel, texts: list[str]) -> list[float]:
    scores = model.score(items(texts))
    assert not any(score.failure for score in scores)
    return [score.value for score in scores if score.value is not None]


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_score_is_the_logit_of_the_text_that_its_own_tokenizer_makes(family: str, folders: dict[str, Path]) -> None:
    folder = folders[family]
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    own = AutoTokenizer.from_pretrained(folder)
    text = "w1 w2 w3 w4" if family == "bert" else "<s>user : w1 w2 assistant : w3 w4 "
    ids = own(text, add_special_tokens=family == "bert", return_tensors="pt")
    with torch.inference_mode():
        expected = classifier(**ids).logits[0, 0].item()
    assert values(RewardModel(str(folder)), ["w3 w4"]) == [expected]


@pytest.mark.parametrize("examples", [5, pytest.param(40, marks=pytest.mark.long)])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_same_text_gets_the_same_bits_in_any_company(
    family: str, dtype: str, rows: int, examples: int, folders: dict[str, Path]
) -> None:
    model = RewardModel(str(folders[family]), dtype=dtype)
    model._shapes = FixedShapes(model.model, model.limit, rows)
    alone: dict[str, float] = {}

    @settings(max_examples=examples)
    @given(TEXTS, st.randoms(use_true_random=False))
    def check(texts: list[str], shuffle: random.Random) -> None:
        for text in texts:
            alone.setdefault(text, values(model, [text])[0])
        mixed = [*texts, *random.Random(0).choices(list(alone), k=3)]
        shuffle.shuffle(mixed)
        assert values(model, mixed) == [alone[text] for text in mixed]

    check()
    assert len(alone) > examples and len(set(alone.values())) > len(alone) // 2


def test_where_neighbours_change_bits_every_text_goes_alone(folders: dict[str, Path]) -> None:
    """A model that leaks its neighbours, or the place in the batch, into a row fails the trial of every shape."""
    model = RewardModel(str(folders["bert"]))
    plain = type(model.model).forward

    def found(leak: Callable[[torch.Tensor], torch.Tensor]) -> list[int]:
        def leaking(self: Any, input_ids: Any, attention_mask: Any) -> Any:
            """Each row by itself, so that nothing else mixes them on any processor."""
            rows = zip(input_ids.split(1), attention_mask.split(1), strict=True)
            logits = torch.cat([plain(self, input_ids=ids, attention_mask=mask).logits for ids, mask in rows])
            return SimpleNamespace(logits=leak(logits))

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(model.model), "forward", leaking)
            shapes = FixedShapes(model.model, 64, rows=4)
            return [shapes.rows(length) for length in (32, 48)]

    assert found(lambda logits: logits + logits.mean()) == [1, 1]
    assert found(lambda logits: logits + torch.arange(len(logits))[:, None]) == [1, 1]
    assert found(lambda logits: logits) == [4, 4]


def test_equal_texts_are_computed_once_and_padded_shapes_are_few(folders: dict[str, Path]) -> None:
    model = RewardModel(str(folders["bert"]))
    shapes = FixedShapes(model.model, 512, rows=4)
    for length in range(1, 500):
        assert length <= shapes._padded(length) <= max(32, length * 1.5)
    assert len({shapes._padded(length) for length in range(1, 500)}) == 9
    calls = []
    model.model.register_forward_hook(lambda *_: calls.append(1))
    scores = model.score(items(["w3", "w4", "w3", "w3", "w4"]))
    assert len(calls) == 2 and scores[0] == scores[2] == scores[3] != scores[1] == scores[4]


@pytest.mark.parametrize("problem", [None, "multi_label_classification"])
def test_a_named_label_of_several_scores_as_its_probability(problem: str | None, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", labels=3)
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "bad", "1": "fair", "2": "good"}, "problem_type": problem}
    (folder / "config.json").write_text(json.dumps(config))
    found = [values(RewardModel(str(folder), label=label), ["w3"])[0] for label in ("bad", "fair", "good", "2")]
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    ids = AutoTokenizer.from_pretrained(folder)("w1 w2 w3", return_tensors="pt")
    with torch.inference_mode():
        logits = classifier(**ids).logits[0].double()
    expected = logits.sigmoid() if problem else logits.softmax(0)
    assert found == pytest.approx([*expected.tolist(), expected[2].item()], abs=1e-12)


@pytest.mark.parametrize("label", [None, "godo", 3, "-1"])
def test_which_of_several_outputs_must_be_said(label: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"reward model .*LABEL_0, LABEL_1, LABEL_2"):
        RewardModel(str(write_model(tmp_path / "m", labels=3)), label=label)


def test_a_beginning_of_sequence_stands_there_once(folders: dict[str, Path]) -> None:
    own = AutoTokenizer.from_pretrained(folders["llama"])
    for template in (TEMPLATE, None, "{{ bos_token }}" + TEMPLATE):
        own.chat_template = template
        for prompt in ("w1", "<s>w1"):
            ids = encode(own, prompt, "w2")
            assert ids[0] == own.bos_token_id and (prompt != "w1" or ids.count(own.bos_token_id) == 1)


def test_prompts_and_completions_may_be_messages(folders: dict[str, Path]) -> None:
    model = RewardModel(str(folders["llama"]))
    chat = [
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    same = [Item("w1 w2", "w3"), Item([{"role": "user", "content": "w1 w2"}], [{"role": "assistant", "content": "w3"}])]
    first, second, third = model.score([*same, Item(chat, "w4")])
    assert first == second and third.value not in (None, first.value)
    separated = RewardModel(str(folders["bert"]), separator=" [SEP] ")
    assert separated._encode(Item(chat, "w4")).count(3) == 4  # type: ignore[union-attr]


def test_texts_that_are_too_long_fail_or_are_cut_on_the_left_and_counted(folders: dict[str, Path]) -> None:
    long, short = " ".join(["w5"] * 30 + ["w6"] * 70), "w7"
    refused, scored = RewardModel(str(folders["bert"])).score(items([long, short]))
    assert refused.value is None and refused.failure == "the text has 104 tokens, the reward model takes 64"
    assert scored.value is not None and not scored.failure
    model = RewardModel(str(folders["bert"]), truncate="cut")
    cut = model.score(items([long, short]))
    assert [score.cut_tokens for score in cut] == [40, 0] and cut[1] == scored
    kept = kept_tokens(list(model._encode(Item("w1 w2", long))), model.limit, model.tokenizer)  # type: ignore[arg-type]
    assert len(kept) == 64 and kept[0] == 2 and kept[-1] == 3 and set(kept[1:-1]) == {4 + 6}
    assert RewardModel(str(folders["bert"]), max_tokens=4).score(items([short]))[0].failure
    with pytest.raises(UserError, match="expected 1 to 64"):
        RewardModel(str(folders["bert"]), max_tokens=65)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("labels", [1, 2])
def test_an_output_that_is_not_finite_is_a_failure(bad: float, labels: int, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "m", labels=labels)
    model = RewardModel(str(folder), label=None if labels == 1 else "LABEL_1")
    with torch.no_grad():
        model.model.get_parameter("classifier.bias")[0] = bad
    for score in model.score(items(["w1", "w2"])):
        assert score.value is None and "not a finite number" in score.failure


@pytest.mark.parametrize(
    "item",
    [Item(3, "w1"), Item("w1", None), Item([{"role": "user"}], "w1"), Item("w1", ["w2"]), Item("\ud800", "w1")],  # type: ignore[arg-type, list-item]
)
def test_what_cannot_be_encoded_fails_alone(item: Item, folders: dict[str, Path]) -> None:
    model = RewardModel(str(folders["llama"]))
    good, bad = model.score([Item("w1", "w2"), item])
    assert good.value is not None and bad.value is None and bad.failure and "\n" not in bad.failure


def test_a_template_that_raises_is_a_failure_of_that_text(tmp_path: Path) -> None:
    strict = "{% if messages | length > 2 %}{{ raise_exception('only two\nmessages') }}{% endif %}w1"
    model = RewardModel(str(write_model(tmp_path / "m", "llama", template=strict)))
    good, bad = model.score([Item("w1", "w2"), Item([{"role": "user", "content": "w1"}] * 2, "w2")])
    assert good.value is not None and "only two messages" in bad.failure


def test_a_template_that_recurses_is_a_failure_and_one_that_hangs_is_told(tmp_path: Path) -> None:
    """Each on one completion only."""
    bad = "{% if messages[-1].content == 'w4' %}{{ 3 ** (messages|length * 10 ** 9) }}{% endif %}"
    deep = "{% macro m() %}{{ m() }}{% endmacro %}{% if messages[-1].content == 'w5' %}{{ m() }}{% endif %}"
    model = RewardModel(str(write_model(tmp_path / "m", "llama", template=deep + bad + TEMPLATE)))
    good, bad_score = model.score([Item("w1", "w2"), Item("w1", "w5")])
    assert good.value is not None and "RecursionError" in bad_score.failure
    told = r"its chat template does not end[^\n]* on the prompt 'w1' with the completion 'w4'$"
    with pytest.raises(UserError, match=told):
        model.score([Item("w1", "w3"), Item("w1", "w4")])


def no_head(folder: Path, family: str, kind: str) -> None:
    shutil.rmtree(folder)
    write_model(folder, family, kind=kind)


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def other_shape(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 64}))


def half_written(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])


def own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "mine", "auto_map": {"AutoConfig": "m.C", "AutoModelForSequenceClassification": "m.M"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "m.py").write_text("raise SystemExit('remote code ran')")


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda folder: no_head(folder, "llama", "causal"), "no trained classification head.*score.weight"),
        (lambda folder: no_head(folder, "bert", "encoder"), "no trained classification head.*classifier"),
        (pickled, "found pytorch_model.bin, which can run code"),
        (other_shape, "another shape"),
        (half_written, "model.safetensors has .* bytes, its header says .*: it was cut short"),
        (own_code, "auto_map: code that comes with a model is never run"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer|cannot be loaded"),
        (shutil.rmtree, "no such directory"),
    ],
)
def test_what_is_no_reward_model_is_refused_in_one_line(
    damage: Callable[[Path], None], told: str, tmp_path: Path
) -> None:
    folder = write_model(tmp_path / "m")
    damage(folder)
    with pytest.raises(UserError, match=rf"^reward model .*({told})") as error:
        RewardModel(str(folder))
    assert "\n" not in str(error.value) and "policy" not in str(error.value)


def parts(folder: Path) -> None:
    """The weights of a folder in two files of other names."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = {name: f"part-{place % 2}.safetensors" for place, name in enumerate(weights)}
    for file in set(names.values()):
        save_file({name: weights[name] for name in weights if names[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))


def wider(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    save_file({name: tensor.double() for name, tensor in weights.items()}, folder / "model.safetensors")


def one_bit(folder: Path) -> None:
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(bytes([file.read(1)[0] ^ 1]))


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda folder: None, True),
        (parts, True),
        (wider, True),
        (lambda folder: (folder / "README.md").write_text("x"), True),
        (lambda folder: (folder / "model-2.safetensors").write_bytes(b"left over"), True),
        (one_bit, False),
        (lambda folder: (one_bit(folder), parts(folder)), False),
        (lambda folder: write_model(folder, seed=1), False),
        (lambda folder: write_model(folder, labels=2), False),
        (lambda folder: write_model(folder, "llama"), False),
    ],
)
def test_a_policy_that_is_its_own_reward_model_is_found_by_its_values(
    change: Callable[[Path], Any], same: bool, folders: dict[str, Path], tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(folders["bert"], tmp_path / "copy"))
    change(copy)
    assert same_weights(str(folders["bert"]), str(copy)) is same_weights(str(copy), str(folders["bert"])) is same


def test_names_of_models_are_compared_before_their_weights(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folders["bert"])
    assert same_weights("owner/name", "owner/name") and same_weights("shipped", str(SHIPPED_POLICY))
    assert same_weights(str(tmp_path / "link"), str(folders["bert"]))
    with pytest.raises(UserError, match=r"^reward model .*absent: no such directory"):
        same_weights(str(folders["bert"]), str(tmp_path / "absent"))


def test_digests_need_little_memory(tmp_path: Path) -> None:
    """Weights of 64 MiB are read in blocks."""
    folder = write_model(tmp_path / "m")
    save_file({"large": torch.zeros(1 << 24)}, folder / "model.safetensors")
    files = read_model_files(folder)
    tracemalloc.start()
    assert len(list(files.digests())) == 1
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 8 << 20


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_on_a_gpu_batches_change_no_bit(dtype: str, folders: dict[str, Path]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    model = RewardModel(str(folders["bert"]), dtype=dtype, device="cuda")
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=draw.randint(1, 50))) for _ in range(100)]
    expected = dict(zip(texts, values(model, texts), strict=True))
    for _ in range(5):
        draw.shuffle(texts)
        assert values(model, texts[:37]) == [expected[text] for text in texts[:37]]
