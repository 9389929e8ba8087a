"""What is measured of answers: against the libraries' own calls, and a T5's separate rows."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from learning.test_encoder_decoders_learned import separate_rows
from sacrebleu.metrics import BLEU
from tiny_t5 import write_t5

from bgrpo.cli.app import main
from bgrpo.evaluation.answer_metrics import MeasuredAnswer, answer_metrics, corpus_bleu
from bgrpo.groups import fused
from bgrpo.policies.io import load_policy


def test_metrics_of_all_answers_together() -> None:
    measured = [
        MeasuredAnswer("e b e b", ("e b c d", "x"), -3.0, 4, True),
        MeasuredAnswer("The cat!", ("the cat", "cat"), -1.0, 2, False),
        MeasuredAnswer("e b", ()),
    ]
    found = answer_metrics(measured)
    means = {name: interval.mean for name, interval in found.items()}
    assert means["perplexity"] == pytest.approx(math.exp(4 / 6)) and means["words"] == 8 / 3
    assert means["distinct_1"] == 4 / 8 and means["distinct_2"] == 3 / 5
    assert means["exact_match"] == 0.5 and means["hits@1"] == 0.5 and means["token_f1"] == (0.5 + 1) / 2
    assert found["exact_match"].low <= 0.5 <= found["exact_match"].high and math.isnan(found["perplexity"].low)
    assert means["rouge_1"] == (0.5 + 1) / 2 and means["rouge_2"] == (2 / 6 + 1) / 2
    assert answer_metrics([MeasuredAnswer("", ())]).keys() == {"words"}, "nothing is known, nothing was said"


def test_corpus_bleu_is_the_librarys_with_any_number_of_answers() -> None:
    texts, first, second = ["the cat sat on the mat", "a b c d e"], ["the cat sat on a mat", "a b c e d"], "cat mat"
    assert corpus_bleu(texts, [[each] for each in first]) == pytest.approx(
        BLEU().corpus_score(texts, [first]).score / 100
    )
    with_second = corpus_bleu(texts, [[first[0]], [first[1], second]])
    assert with_second == pytest.approx(BLEU().corpus_score(texts, [first, [None, second]]).score / 100)


def test_the_command_writes_answers_with_passages_and_measures_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out, data = tmp_path / "policy", tmp_path / "answers.jsonl", tmp_path / "data.jsonl"
    write_t5(folder)
    stories = [{"title": "w8", "text": "w9 w1"}, {"title": "w2", "text": "w4"}]
    rows: list[dict[str, Any]] = [
        {
            "id": "one",
            "question": "w1 w2",
            "answers": ["w3 w4", "w5"],
            "passages": stories,
            "candidates": ["w3 w4", "w6"],
        },
        {"question": "w7", "answers": [], "passages": stories[:1]},
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["evaluate", "--policy", str(folder), "--data", str(data), "--answers", str(out), "--task", "dialogue"]
    options = {"query": "{question}", "passage": "{query} {title} {text}", "answer_prefix": "w0"}
    command += [f"task.options.{name}={json.dumps(text)}" for name, text in options.items()]
    assert main([*command, "--max-new-tokens", "4", "--json"]) == 0
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["id"] for line in lines] == ["one", None] and lines[0]["answers"] == ["w3 w4", "w5"]
    assert [story["title"] for story in lines[0]["passages"]] == ["w8", "w2"]

    model = load_policy(str(folder)).model
    prompt = fused([[4, 5, 11, 12, 4, 1], [4, 5, 5, 7, 1]])  # w1 w2 w8 w9 w1, and w1 w2 w2 w4
    with torch.no_grad():  # after the prefix w0, which is no part of an answer
        known, other = (separate_rows(model, prompt, [3, *ids, 1])[1:] for ids in ([6, 7], [9]))
    assert lines[0]["known_logprob"] == pytest.approx(float(known.sum()), abs=1e-4) and lines[0]["known_tokens"] == 3
    assert lines[0]["hits@1"] == float(known.mean() > other.mean()) and lines[1]["hits@1"] is None
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    assert metrics["perplexity"] == {"mean": pytest.approx(math.exp(-known.mean())), "low": None, "high": None}
    assert main([*command, "--max-new-tokens", "4"]) == 2, "there are answers already"
    assert main([*command, "--max-new-tokens", "4", "--overwrite"]) == 0
    assert "perplexity" in capsys.readouterr().out
