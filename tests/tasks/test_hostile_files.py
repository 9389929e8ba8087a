"""Data files, minGPT models and what a run keeps can hold anything: used, or refused in one line, in bounded memory."""

from __future__ import annotations

import io
import json
import os
import pickle
import random
import resource
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hostile_files import mutated

from bgrpo.errors import UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.evaluation.metrics import Evaluation
from bgrpo.policies.io import save_policy
from bgrpo.policies.model import build_policy
from bgrpo.tasks.base import Problem
from bgrpo.tasks.polynomial.data_files import MAX_LINE_BYTES, read_lines, verify_file
from bgrpo.tasks.polynomial.mingpt import export_mingpt, import_mingpt, simple_vocabulary
from bgrpo.tasks.polynomial.task import PolynomialTask
from bgrpo.tasks.polynomial.tokenizer import tokenizer_from_tokens
from bgrpo.tasks.problem_files import read_problems, write_problems

LINE = "+ P 3 + * P 2 ^ a P 2 ^ a P 4 ⁇ ^ a P 2\n"
MUTATIONS = 125  # of each kind of file
EVALUATION = Evaluation(["a", "b"], {"greedy": [1.0, 0.0]}, {"beam 1": {"correct": 1}}, "x")


@pytest.fixture(scope="module")
def mingpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mingpt")
    tokenizer = tokenizer_from_tokens(simple_vocabulary())
    save_policy(build_policy(tokenizer, 1, 2, 8, 16, 0), tokenizer, folder / "policy")
    export_mingpt(folder / "policy", folder / "model.pt", folder / "model.json")
    return folder


def refusal(read: Callable[[], Any]) -> str:
    with pytest.raises(UserError) as caught:
        read()
    message = str(caught.value)
    assert message.isprintable() and len(message) < 700, message
    return message


def used_or_refused(content: bytes, path: Path, read: Callable[[], Any]) -> None:
    """Write mutations of a file and read them."""
    used = 0
    for seed in range(MUTATIONS):
        path.write_bytes(mutated(content, random.Random(seed)))
        try:
            read()
            used += 1
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 700, (seed, error)
        except BaseException as error:
            raise AssertionError(f"mutation {seed} of {path.name}") from error
    assert 0 < used < MUTATIONS, "mutations that do nothing, or only the same"


@pytest.mark.parametrize("file", ["model.pt", "model.json"])
def test_any_mutation_of_a_mingpt_model(mingpt: Path, tmp_path: Path, file: str) -> None:
    files = {name: tmp_path / name for name in ("model.pt", "model.json")}
    for name, path in files.items():
        path.write_bytes((mingpt / name).read_bytes())
    content = files[file].read_bytes()
    used_or_refused(
        content, files[file], lambda: import_mingpt(files["model.pt"], files["model.json"], tmp_path / "out")
    )


def test_any_mutation_of_a_data_file(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    used_or_refused((LINE * 3).encode(), path, lambda: [PolynomialTask().load(path), verify_file(path)])


def test_any_mutation_of_a_runs_problems(tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    write_problems(path, [Problem("+ a ⁇", "a", "x", 3)])
    used_or_refused(path.read_bytes(), path, lambda: read_problems(path))


def test_any_mutation_of_an_evaluation(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    EvaluationComparison(EVALUATION, EVALUATION).save(path)
    used_or_refused(path.read_bytes(), path, lambda: EvaluationComparison.load(path))


@pytest.mark.parametrize("name", ["/dev/zero", "/dev/stdin-is-absent", "/tmp", "pipe"])
def test_what_is_no_file_is_refused_unread(name: str, tmp_path: Path, mingpt: Path) -> None:
    path = tmp_path / "pipe" if name == "pipe" else Path(name)
    if name == "pipe":
        os.mkfifo(path)
    good = mingpt / "model.pt", mingpt / "model.json"
    for read in (
        lambda: list(read_lines(path)),
        lambda: verify_file(path),
        lambda: PolynomialTask().load(path),
        lambda: read_problems(path),
        lambda: EvaluationComparison.load(path),
        lambda: import_mingpt(path, good[1], tmp_path / "out"),
        lambda: import_mingpt(good[0], path, tmp_path / "out"),
    ):
        assert any(reason in refusal(read) for reason in ("no such file", "Is a pipe", "Is a directory"))


@pytest.mark.parametrize("line", [b"?" * MAX_LINE_BYTES * 3, b"a" * MAX_LINE_BYTES * 3, b"\x00" * MAX_LINE_BYTES * 3])
def test_a_line_without_end_is_refused_in_bounded_memory(line: bytes, tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(LINE.encode() + line)
    with path.open("ab") as file:
        file.truncate(1 << 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert f":2: more than {MAX_LINE_BYTES:,} bytes" in refusal(lambda: verify_file(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KiB


def test_a_line_of_separators_is_counted_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("a" + "?" * (MAX_LINE_BYTES - 10) + "\n")
    assert f":1: {MAX_LINE_BYTES - 10} separators" in refusal(lambda: list(read_lines(path)))


def repeated(state: dict[str, torch.Tensor]) -> None:
    state["tok_emb.weight"] = torch.zeros(1).expand(10**10, 8)


def compressed(path: Path) -> None:
    old = zipfile.ZipFile(io.BytesIO(path.read_bytes()))
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for part in old.infolist():
            new.writestr(part.filename, b"\x00" * 10_000_000 if "/data/" in part.filename else old.read(part))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (repeated, "more numbers than the file has bytes"),
        (lambda state: state["head.weight"].fill_(float("nan")), "head.weight is not finite"),
        (lambda state: state["ln_f.bias"].fill_(float("inf")), "ln_f.bias is not finite"),
        (lambda state: state.update({"ln_f.bias": torch.ones(8, dtype=torch.int64)}), "expected a plain tensor"),
        (lambda state: state.update({"ln_f.bias": torch.ones(8, dtype=torch.complex64)}), "expected a plain tensor"),
        (lambda state: state.update({"ln_f.bias": torch.ones(8).to_sparse()}), "expected a plain tensor"),
        (lambda state: state.update({"ln_f.bias": torch.full((8,), 1e300, dtype=torch.float64)}), "not finite"),
        (lambda state: state.update({5: torch.ones(8)}), "expected a state dict"),
        (lambda state: state.update({"pos_emb": torch.ones(())}), "cannot be read"),
        (lambda state: state.update({"pos_emb": torch.ones(0, 16, 8)}), "block_size=16, but the weights have 0"),
        (lambda state: state.update({"x" * 9000: torch.ones(8)}), "unknown weight"),
        (lambda state: state.pop("pos_emb"), "position embedding"),
    ],
)  # fmt: skip
def test_weights_that_are_refused(mingpt: Path, tmp_path: Path, change: Any, message: str) -> None:
    state = torch.load(mingpt / "model.pt", weights_only=True)
    change(state)
    torch.save(state, tmp_path / "model.pt")
    found = refusal(lambda: import_mingpt(tmp_path / "model.pt", mingpt / "model.json", tmp_path / "out"))
    assert message in found


def test_a_compressed_file_is_refused_before_it_grows(mingpt: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes((mingpt / "model.pt").read_bytes())
    compressed(tmp_path / "model.pt")
    assert "compressed" in refusal(
        lambda: import_mingpt(tmp_path / "model.pt", mingpt / "model.json", tmp_path / "out")
    )


def test_an_old_pickle_of_a_huge_tensor_is_refused(mingpt: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps({"tok_emb.weight": [0] * 1000}, protocol=2))
    assert "refused" in refusal(lambda: import_mingpt(tmp_path / "model.pt", mingpt / "model.json", tmp_path / "out"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vocabulary": None, "MAX_NUMBER_TOKEN": 10**9}, "MAX_NUMBER_TOKEN"),
        ({"vocabulary": None, "MAX_NUMBER_TOKEN": -42}, "MAX_NUMBER_TOKEN"),
        ({"vocabulary": None, "MAX_NUMBER_TOKEN": True}, "MAX_NUMBER_TOKEN"),
        ({"vocabulary": None, "MAX_NUMBER_TOKEN": "x" * 10**6}, "MAX_NUMBER_TOKEN"),
        ({"vocabulary": ["a"] * 200_000}, "200000 tokens"),
        ({"vocabulary": None, "stoi": {"a": None, "b": 1}}, "cannot be read"),
        ({"vocabulary": None, "stoi": {str(i): i for i in range(100_000)}}, "100000 tokens"),
        ({"n_head": True}, "n_head=True"),
        ({"n_head": 10**30}, "n_head="),
        ({"activation": ["gelu"]}, "activation="),
        ({"block_size": "x" * 10**6}, "block_size="),
    ],
)
def test_settings_that_are_refused(mingpt: Path, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    settings = json.loads((mingpt / "model.json").read_text("utf-8"))
    short = settings | {"vocab_size": 32} if changes.get("MAX_NUMBER_TOKEN") else settings
    state = torch.load(mingpt / "model.pt", weights_only=True)
    if changes.get("MAX_NUMBER_TOKEN"):
        for name in ("tok_emb.weight", "head.weight"):
            state[name] = torch.zeros(32, 8)
    torch.save(state, tmp_path / "model.pt")
    (tmp_path / "model.json").write_text(json.dumps(short | changes), "utf-8")
    assert message in refusal(lambda: import_mingpt(tmp_path / "model.pt", tmp_path / "model.json", tmp_path / "out"))
