"""The metric embedding_similarity: against plain transformers, whatever the batch, and what is refused."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_rewards import WORDS, write_model
from transformers import AutoModel, AutoTokenizer

from bgrpo.config import TrainConfig, build_config
from bgrpo.errors import UserError
from bgrpo.scoring.attempts import Attempt
from bgrpo.scoring.fixed_shapes import FixedShapes
from bgrpo.scoring.judge import Judge
from bgrpo.scoring.reward_model import RewardModel
from bgrpo.scoring.scored_text import Item
from bgrpo.scoring.sentence_encoder import EmbeddingSimilarity, mean_pooled
from bgrpo.tasks.base import Problem

TEXT = st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("encoder") / "bert", "bert", kind="encoder")


@pytest.fixture(scope="module")
def encoder(folder: Path) -> EmbeddingSimilarity:
    return EmbeddingSimilarity(str(folder))


def plain(folder: Path, one: str, other: str) -> float:
    """As a reader of the model card would compute it."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    batch = tokenizer([one, other], padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][:, :, None]
    vectors = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=1)
    return float(vectors[0] @ vectors[1])


def values(encoder: EmbeddingSimilarity, pairs: list[tuple[str, str]]) -> list[float]:
    scores = encoder.score([Item(*pair) for pair in pairs])
    assert not any(score.failure for score in scores)
    return [score.value for score in scores if score.value is not None]


@pytest.mark.parametrize(("prompt", "completion"), [("w1 w2 w3", "w4"), ("w7 w8", "w8 w7 w9 user : w1"), ("w5", "w5")])
def test_a_score_is_the_cosine_of_mean_pooled_embeddings(
    prompt: str, completion: str, folder: Path, encoder: EmbeddingSimilarity
) -> None:
    assert values(encoder, [(prompt, completion)])[0] == pytest.approx(plain(folder, prompt, completion), abs=1e-5)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("rows", [1, 4])
def test_the_same_texts_get_the_same_bits_in_any_company(rows: int, dtype: str, folder: Path) -> None:
    encoder = EmbeddingSimilarity(str(folder), dtype=dtype)
    encoder._shapes = FixedShapes(encoder._shapes._model, encoder.limit, rows, outputs=mean_pooled)
    alone: dict[tuple[str, str], float] = {}

    @settings(max_examples=12)
    @given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=6), st.randoms(use_true_random=False))
    def check(pairs: list[tuple[str, str]], shuffle: random.Random) -> None:
        for pair in pairs:
            alone.setdefault(pair, values(encoder, [pair])[0])
        mixed = [*pairs, *random.Random(0).choices(list(alone), k=3)]
        shuffle.shuffle(mixed)
        assert values(encoder, mixed) == [alone[pair] for pair in mixed]

    check()
    assert all(-1 <= value <= 1 for value in alone.values()) and len(set(alone.values())) > len(alone) // 2


def test_equal_texts_are_as_similar_as_can_be_and_a_prompt_is_computed_once(encoder: EmbeddingSimilarity) -> None:
    assert values(encoder, [("w1 w2", "w1 w2")]) == [pytest.approx(1.0, abs=1e-9)]
    calls: list[int] = []
    handle = encoder._shapes._model.register_forward_hook(lambda *_: calls.append(1))
    values(encoder, [("w1 w2", "w3"), ("w1 w2", "w4"), ("w1 w2", "w3")])
    handle.remove()
    assert len(calls) == 3


def test_of_a_chat_the_turns_count_and_not_the_system(encoder: EmbeddingSimilarity) -> None:
    chat = [
        {"role": "system", "content": "w9"},
        {"role": "user", "content": "w1"},
        {"role": "assistant", "content": "w2"},
        {"role": "user", "content": "w3"},
    ]
    of_chat = encoder.score([Item(chat, [{"role": "assistant", "content": "w4"}])])
    assert of_chat == encoder.score([Item("w1\nw2\nw3", "w4")])


def test_long_texts_fail_or_are_cut_and_told(folder: Path, encoder: EmbeddingSimilarity) -> None:
    long = " ".join(["w1"] * 99)
    (refused,) = encoder.score([Item("w2", long)])
    assert refused.value is None and refused.failure == "the completion has 101 tokens, the sentence encoder takes 64"
    (cut,) = EmbeddingSimilarity(str(folder), truncate="cut").score([Item(long, long)])
    assert cut.cut_tokens == 2 * (101 - 64) and cut.value == pytest.approx(1.0)
    with pytest.raises(UserError, match=r"sentence encoder .*max_tokens=65: expected 1 to 64"):
        EmbeddingSimilarity(str(folder), max_tokens=65)


def part(**options: Any) -> TrainConfig:
    return build_config(TrainConfig, {"reward": {"parts": {"coherence": options}}}, "test")


def test_a_part_runs_it_where_reward_models_run(folder: Path, encoder: EmbeddingSimilarity) -> None:
    config = part(metric="embedding_similarity", encoder=str(folder))
    assert config.reward.parts["coherence"].held_model == str(folder)
    problem = Problem("w1 w2", "w3")
    with Judge(config).start(Attempt(problem, "w3")) as scorer:
        (found,) = scorer.judge([Attempt(problem, "w4 w5")])
    assert found.parts == {"coherence": values(encoder, [("w1 w2", "w4 w5")])[0]}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "embedding_similarity"}, r"parts\.coherence: metric=embedding_similarity and encoder=PATH_OR_ID"),
        ({"metric": "bleu", "encoder": "x"}, "belong together"),
        ({"metric": "embedding_similarity", "encoder": "x", "label": "good"}, "label is an option of parts with model"),
        (
            {"metric": "bleu", "dtype": "bf16"},
            "dtype is an option of parts with model or encoder, but this one has metr",
        ),
    ],
)
def test_options_that_do_not_fit_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        part(**options)


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sentence encoder .*nowhere: no such directory"):
        EmbeddingSimilarity(str(tmp_path / "nowhere"))


def test_out_of_memory_a_shape_takes_fewer_rows(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial of a shape halves its rows; nothing is scored in another shape than the trial found."""
    model = RewardModel(str(write_model(folder.parent / "judge", "bert")))
    shapes = FixedShapes(model.model, 64, rows=8)
    forward = type(model.model).forward

    def small(self: Any, input_ids: Any, attention_mask: Any) -> Any:
        """Each row by itself: whether this processor's kernels mix rows is not what is asked here."""
        if len(input_ids) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        rows = zip(input_ids.split(1), attention_mask.split(1), strict=True)
        logits = [forward(self, input_ids=ids, attention_mask=mask).logits for ids, mask in rows]
        return SimpleNamespace(logits=torch.cat(logits))

    monkeypatch.setattr(type(model.model), "forward", small)
    assert shapes.rows(32) == 2
    assert len(dict(shapes.logits([[5, 6, 7], [8], [9, 10]]))) == 3


@pytest.mark.parametrize(
    "error",
    [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] can't allocate memory")],
)
def test_without_memory_for_a_single_text_the_model_is_named(
    error: Exception, folder: Path, encoder: EmbeddingSimilarity, monkeypatch: pytest.MonkeyPatch
) -> None:
    def starve(*_: Any) -> None:
        raise error

    monkeypatch.setattr(FixedShapes, "_forward", starve)
    with pytest.raises(MemoryError, match=r"sentence encoder .*bert: out of memory \(.*\): take a smaller model"):
        encoder.score([Item("w1", "w2")])
    with pytest.raises(UserError, match=r"reward\.parts\.coherence: sentence encoder .* out of memory"):
        Judge(part(metric="embedding_similarity", encoder=str(folder))).start(Attempt(Problem("w1", "w2"), "w2"))


def test_another_error_of_a_model_stays_what_it_is(encoder: EmbeddingSimilarity, monkeypatch: Any) -> None:
    monkeypatch.setattr(FixedShapes, "_forward", lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        encoder.score([Item("w1", "w2")])
