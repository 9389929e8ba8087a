"""The command line: exit statuses, one-line errors, fast help, and what each command prints or writes."""

from __future__ import annotations

import json
import re
import runpy
import subprocess
import sys
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bgrpo.cli import bench, doctor, measure
from bgrpo.cli.app import main
from bgrpo.config import PretrainConfig, TrainConfig, load_config
from bgrpo.errors import RunError
from bgrpo.evaluation.decoders import LocalDecoder
from bgrpo.groups import Completion, Verdict
from bgrpo.runs.run_folder import RunFolder
from bgrpo.tasks.base import Problem
from bgrpo.tasks.polynomial.task import PolynomialTask

COMMANDS = [
    "train",
    "pretrain",
    "evaluate",
    "decode",
    "verify",
    "generate-data",
    "filter",
    "mix",
    "overlap",
    "histogram",
    "convert",
    "doctor",
    "bench",
    "bench task",
    "bench rollouts",
    "bench step",
    "bench scaling",
    "bench advantages",
    "sweep",
    "report",
]
HEAVY = ("torch", "transformers", "ray", "mlflow", "trl", "numpy", "sympy", "matplotlib")
GENERATE = ["generate-data", "--degrees", "2,2", "--coefficients", "3", "--count", "8"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "problems.txt"
    assert main([*GENERATE, "--seed", "5", "--out", str(path)]) == 0
    return path


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny policy that knows nothing."""
    from bgrpo.policies.io import save_policy
    from bgrpo.policies.model import build_policy
    from bgrpo.tasks.polynomial.tokenizer import build_tokenizer

    tokenizer = build_tokenizer(0, 0)
    folder = tmp_path_factory.mktemp("policy") / "tiny"
    save_policy(build_policy(tokenizer, layers=1, heads=2, width=8, context=128, seed=3), tokenizer, folder)
    return folder


def _error(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line that a wrong command line gets."""
    assert main(list(arguments)) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


def test_help_needs_no_heavy_import() -> None:
    script = (
        "import sys; from bgrpo.cli.app import main\n"
        f"for command in [''] + {COMMANDS!r}: assert main([*command.split(), '--help']) == 0, command\n"
        f"print('HEAVY', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert done.stdout.count("Usage: bgrpo") == 1 + len(COMMANDS)


def test_no_command_shows_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    assert "generate-data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("trian", "No such command 'trian'"),
        ("train --confg x", "No such option: --confg"),
        ("train --config quickstrat", "no shipped configuration of that name; did you mean 'quickstart'?"),
        ("train --config quickstart rollout.group_sise=3", "did you mean 'rollout.group_size'?"),
        ("train --config quickstart steps", "expected key=value"),
        ("train --resume nothing-of-that-name", "no run 'nothing-of-that-name' in "),
        ("bench", "Missing command"),
        ("verify", "Missing option '--data'"),
        ("verify --data absent.txt", "absent.txt: no such file"),
        ("verify --data absent.txt --task-option ring=RR", "ring='RR': expected ZZ (integers) or QQ"),
        ("verify --data absent.txt --task-option ring", "--task-option ring: expected KEY=VALUE"),
        ("verify --data absent.txt --task nowhere", "expected 'dialogue', 'polynomial', 'text' or 'module:Class'"),
        ("verify --data absent.txt --task-option rnig=QQ", "unexpected keyword argument 'rnig'"),
        ("evaluate --data absent.txt", "absent.txt: no such file"),
        ("evaluate --problems 0", "'--problems'"),
        ("evaluate --config absent", "--config absent: no such file"),
        ("decode --data absent.txt --out out.jsonl", "absent.txt: no such file"),
        ("decode --data absent.txt --out /proc/out.jsonl", "the folder /proc cannot be written"),
        ("decode --data absent.txt --out .", "is a folder"),
        ("generate-data --degrees 2 --coefficients 3 --count 1 --out x.txt", "pair outer,inner"),
        ("generate-data --degrees a,b --coefficients 3 --count 1 --out x.txt", "'a,b' is not a pair outer,inner"),
        ("generate-data --degrees 1,2 --coefficients 3 --count 1 --out x.txt", "1,2 makes trivial problems"),
        (
            "generate-data --degrees 2,2 --coefficients 0 --count 1 --out x.txt",
            "coefficients=0: expected an integer from 1",
        ),
        ("generate-data --degrees 2,2 --coefficients 3 --count 0 --out x.txt", "'--count'"),
        ("generate-data --degrees 2,2 --coefficients 3 --count 1 --out x.txt --kind many", "kind='many'"),
        ("generate-data --degrees 2,2 --coefficients 3 --count 1 --out x.txt --leading left", "leading='left'"),
        ("generate-data --degrees 2,2 --coefficients 1 --count 100000 --out x.txt", "100000"),
        ("generate-data --degress 2,2 --count 1 --out x.txt", "did you mean 'degrees'?"),
        ("generate-data --degrees --count 1 --out x.txt", "degrees"),
        ("generate-data --count 1 --out x.txt --degrees", "--degrees: a value is missing"),
        ("generate-data 2,2 --count 1 --out x.txt", "'2,2': expected an option of the task's generator"),
    ],
)
def test_wrong_usage_is_one_line(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in _error(capsys, *arguments.split())
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_a_malformed_line_is_named_by_its_number(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("^ a P 4 ⁇ ^ a P 2\n^ a P 4 ^ a P 2\n")
    assert f"{path}:2: " in _error(capsys, "verify", "--data", str(path))
    assert f"{path}:2: " in _error(capsys, "evaluate", "--data", str(path))


def test_a_policy_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path) -> None:
    out = tmp_path / "beams.jsonl"
    policy = str(tmp_path / "no such policy")
    assert policy in _error(capsys, "decode", "--policy", policy, "--data", str(data), "--out", str(out))
    assert policy in _error(capsys, "evaluate", "--policy", policy, "--data", str(data))
    assert list(tmp_path.iterdir()) == []


def test_interruption_has_its_own_status(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure_task", interrupt)
    assert main(["bench", "task"]) == 130


def test_the_unexpected_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*arguments: Any) -> int:
        raise RuntimeError("a bug")

    monkeypatch.setattr(bench, "measure_task", crash)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["bench", "task"])


def test_a_module_run_ends_with_the_status() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "bgrpo.cli.app", "verify", "--data", "absent"],
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert (done.returncode, done.stderr) == (2, "error: absent: no such file\n")


@pytest.mark.parametrize(("command", "module"), [("train", "training_run"), ("pretrain", "pretraining_run")])
def test_training_is_handed_over_with_its_status(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: str, module: str
) -> None:
    calls: list[tuple[Any, ...]] = []

    def note(config: Any, *arguments: Any) -> int:
        calls.append((config.seed, config.steps, *arguments))
        return 143

    stub = ModuleType(module)
    setattr(stub, f"{command}_and_announce", note)
    monkeypatch.setitem(sys.modules, f"bgrpo.distributed.train.{module}", stub)
    model = TrainConfig if command == "train" else PretrainConfig
    yesterday = RunFolder.create(load_config(model, None, [f"run.dir={tmp_path}"]), None)
    assert main([command, "steps=3", "seed=2"]) == 143
    assert main([command, "--resume", str(yesterday.path)]) == 143
    default = model()
    if command == "train":
        assert calls == [(2, 3, None, False, False), (default.seed, default.steps, None, True, False)]
    else:
        assert calls == [(2, 3, None, ["steps=3", "seed=2"], False), (default.seed, default.steps, None, [], True)]
    assert main([command, "--resume", str(yesterday.path), "nonsense=1"]) == 2
    assert len(calls) == 2, "a mistake is told before anything is imported"


def test_verify_counts_every_outcome(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "mixed.txt"
    answers = ["^ a P 2", "+ ^ a P 2 P 1", "a", "^ a P 4", "+ ^ a P 2", "+ a P 1", "^ a P 3"]
    path.write_text("".join(f"^ a P 4 ⁇ {answer}\n" for answer in answers))
    assert main(["verify", "--data", str(path), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["outcomes"] == {
        "correct": 2, "wrong": 1, "trivial": 3, "unparseable": 1, "truncated": 0, "timeout": 0, "error": 0,
    }  # fmt: skip
    assert main(["verify", "--data", str(path)]) == 0
    assert f"{path}:5: unparseable" in capsys.readouterr().out


def test_rational_outer_polynomials_are_an_option(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    path = tmp_path / "halves.txt"
    path.write_text("^ a P 4 ⁇ * P 2 ^ a P 2\n")  # a^4 = (2a^2)^2 / 4
    for ring, outcome in (("ZZ", "wrong"), ("QQ", "correct")):
        assert main(["verify", "--data", str(path), "--task-option", f"ring={ring}", "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["outcomes"][outcome] == 1


def test_generated_files_are_a_function_of_the_seed(tmp_path: Path, data: Path) -> None:
    def generate(name: str, *more: str) -> list[str]:
        assert main([*GENERATE, *more, "--out", str(tmp_path / name)]) == 0
        return (tmp_path / name).read_text("utf-8").splitlines()

    lines = data.read_text("utf-8").splitlines()
    assert len(set(lines)) == 8
    assert generate("same", "--seed", "5") == lines
    assert generate("two-processes", "--seed", "5", "--workers", "2") == lines
    assert generate("other", "--seed", "6") != lines
    prompts = {line.split(" ⁇ ")[0] for line in generate("disjoint", "--seed", "5", "--exclude", str(data))}
    assert len(prompts) == 8
    assert prompts.isdisjoint(line.split(" ⁇ ")[0] for line in lines)


def test_decode_writes_every_problem_with_its_ranked_checked_beams(data: Path, policy: Path, tmp_path: Path) -> None:
    from bgrpo.policies.io import load_policy
    from bgrpo.policies.text import decode_completion

    out = tmp_path / "beams.jsonl"
    base = ["decode", "--policy", str(policy), "--data", str(data), "--out", str(out), "--max-new-tokens", "6"]
    assert main([*base, "--beam-width", "25", "--batch", "3", "--threads", "1"]) == 0
    lines = [json.loads(line) for line in out.read_text("utf-8").splitlines()]
    task, tokenizer = PolynomialTask(), load_policy(str(policy)).tokenizer
    assert [line["prompt"] for line in lines] == [problem.prompt for problem in task.load(data).problems]
    outcomes = set()
    for line in lines:
        completions = line["completions"]
        assert [completion["rank"] for completion in completions] == list(range(1, 26))
        logprobs = [completion["logprob"] for completion in completions]
        assert logprobs == sorted(logprobs, reverse=True)
        for completion in completions:
            assert completion["finished"] == (completion["tokens"][-1] == tokenizer.eos_token_id)
            assert completion["text"] == decode_completion(tokenizer, completion["tokens"])
            expected = task.check(line["prompt"], completion["text"]) if completion["finished"] else "truncated"
            assert completion["outcome"] == expected
            outcomes.add(completion["outcome"])
    assert {"truncated", "unparseable"} <= outcomes
    assert main([*base, "--limit", "2"]) == 2, "an existing file stays"
    assert main([*base, "--limit", "2", "--overwrite"]) == 0
    assert len(out.read_text("utf-8").splitlines()) == 2


def test_an_interrupted_decode_leaves_no_file(
    data: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def interrupted(self: LocalDecoder, problems: Sequence[Problem], *rest: Any) -> list[list[Completion]]:
        calls.append(problems)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [[] for _ in problems]

    monkeypatch.setattr(LocalDecoder, "__call__", interrupted)
    out = tmp_path / "beams.jsonl"
    status = main(["decode", "--policy", str(policy), "--data", str(data), "--out", str(out), "--batch", "4"])
    assert status == 130
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_is_one_line(
    data: Path, policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import os

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    arguments = ["--policy", str(policy), "--data", str(data), "--limit", "1", "--max-new-tokens", "2"]
    error = _error(capsys, "decode", *arguments, "--out", str(tmp_path / "beams.jsonl"))
    assert "No space left on device" in error
    assert list(tmp_path.iterdir()) == []


def test_evaluate_prints_metrics_categories_and_outcomes(
    data: Path, policy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["evaluate", "--policy", str(policy), "--data", str(data), "--problems", "5", "--max-new-tokens", "5"]
    assert main([*base, "--beam-width", "3", "--samples", "4", "--threads", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["problems"] == 5
    assert set(result["metrics"]) == {
        "greedy",
        "beam@3",
        "top1",
        "beam_rank_score",
        "pass@1",
        "pass@3",
        "pass@4",
        "oracle",
    }
    assert set(result["metrics"]["greedy"]) == {"mean", "low", "high"}
    assert result["by_category"]["2_2"]["problems"] == 5
    totals = {search: sum(counts.values()) for search, counts in result["outcomes"].items()}
    assert totals == {"beam 1": 5, "beam 3": 15, "beam 10": 50, "sample 4": 20}
    assert main([*base, "--samples", "0"]) == 0
    assert "beam-rank score" in capsys.readouterr().out


def test_evaluate_tells_why_checks_failed(data: Path, policy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = ["evaluate", "--policy", str(policy), "--data", str(data), "--max-new-tokens", "12"]
    base += ["--samples", "0", "reward.function=reward_functions:strict_about_half"]
    assert main([*base, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    failed = sum(counts["error"] for counts in result["outcomes"].values())
    (line,) = result["failed_checks"]
    assert failed and line.startswith(f"error in {failed} of ") and "the first: TypeError: [bold]no answer" in line
    assert main(base) == 0
    assert line in " ".join(capsys.readouterr().out.split("\n"))
    out = data.parent / "judged.jsonl"
    assert main(["decode", "--policy", str(policy), "--data", str(data), "--out", str(out), base[-1]]) == 0
    written = [each for text in out.read_text("utf-8").splitlines() for each in json.loads(text)["completions"]]
    assert all(("detail" in each) == (each["outcome"] == "error") for each in written)
    base[-1] = "reward.function=reward_functions:always_fails"
    assert main(base) == 2
    assert re.search(r"error: [^\n]*tried on prompt [^\n]*NameError: name 'np' is not", capsys.readouterr().err)


def test_verify_tells_what_a_users_task_does_wrong(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "task 'raising': verify() failed: ValueError: no such column" in _error(
        capsys, "verify", "--data", str(data), "--task", "user_tasks:RaisingTask"
    )
    odd = ["verify", "--data", str(data), "--task", "user_tasks:OddTask"]
    assert "task 'odd': verify() is no good for bgrpo verify" in _error(capsys, *odd)
    bad = "{line: 7, outcome: error, detail: 'TypeError: [bold]x'}"
    returned = f"returned={{lines: 1, microseconds_per_check: 1.5, outcomes: {{error: 1}}, first_bad: [{bad}]}}"
    assert main([*odd, "--task-option", returned]) == 0
    assert ":7: error: TypeError: [bold]x" in capsys.readouterr().out


def test_evaluate_takes_a_configurations_test_problems(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    @contextmanager
    def knowing(_decoding: Any, problems: list[Problem], _where: str) -> Any:
        """Solves every problem at rank 2."""

        def decode(problems: Sequence[Problem], mode: str, group_size: int, seeds: Any) -> list[list[Completion]]:
            asked.extend(problem.prompt for problem in problems)
            wrong, right = (Completion([1], [0.0], True, "", Verdict(outcome)) for outcome in ("wrong", "correct"))
            return [[wrong, right, *[wrong] * group_size][:group_size] for _ in problems]

        yield decode, problems

    monkeypatch.setattr(measure, "_decoder", knowing)
    config = tmp_path / "mine.yaml"
    options = "{degrees: [[2, 2]], coefficients: 3}"
    config.write_text(f"task: {{test: {{options: {options}, count: 12, seed: 4}}}}\n")
    assert main(["evaluate", "--config", str(config), "--json", "--samples", "0"]) == 0
    metrics = json.loads(capsys.readouterr().out)["metrics"]
    expected = PolynomialTask().generate({"degrees": [[2, 2]], "coefficients": 3}, 12, 4)
    assert set(asked) == {problem.prompt for problem in expected}
    assert metrics["greedy"]["mean"] == 0
    assert metrics["beam@3"]["mean"] == 1
    assert (
        main(["evaluate", "--config", str(config), "--json", "evaluation.beam_widths=[2]", "evaluation.samples=0"]) == 0
    )
    assert set(json.loads(capsys.readouterr().out)["metrics"]) == {"greedy", "beam@2", "top1", "beam_rank_score"}
    assert metrics["beam_rank_score"]["mean"] == pytest.approx(0.904837418)


def test_bad_answers_of_an_evaluation_file_are_reported(
    policy: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = tmp_path / "bad.txt"
    path.write_text("^ a P 4 ⁇ ^ a P 3\n^ a P 4 ⁇ a\n")
    arguments = ["--policy", str(policy), "--max-new-tokens", "2", "--samples", "0", "--json"]
    assert main(["evaluate", "--data", str(path), *arguments]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"] == 1
    assert "own answers of 2 lines: 1 wrong, 1 trivial" in captured.err


@pytest.mark.parametrize(("status", "expected"), [("warn", 0), ("fail", 1)])
def test_doctor_fails_only_when_something_must_be_mended(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], status: Any, expected: int
) -> None:
    checks = [doctor.Check("cores", "ok", "2"), doctor.Check("disk", status, "[full]", "free some space")]
    monkeypatch.setattr(doctor, "diagnose", lambda runs, with_ray: iter(checks))
    assert main(["doctor", "--json"]) == expected
    captured = capsys.readouterr()
    assert json.loads(captured.out)["checks"][1]["advice"] == "free some space"
    assert json.loads(captured.out)["ok"] is (expected == 0)
    assert main(["doctor"]) == expected
    assert "disk: [full]" in capsys.readouterr().out


def test_bench_prints_what_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "task", "--seconds", "0.2", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == {"microseconds_per_check", "lines_per_s", "speed_up"}
    assert set(result["lines_per_s"]) == {"single_4_4", "multi_3"}


def test_the_published_lost_signs_are_found(shared_data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = shared_data / "polynomial" / "validation_multi_lost_signs.txt"
    assert main(["verify", "--data", str(path), "--json"]) == 0
    outcomes = json.loads(capsys.readouterr().out)["outcomes"]
    assert {name: count for name, count in outcomes.items() if count} == {"wrong": 112, "trivial": 16}


def test_a_failed_run_ends_with_its_cause_alone(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import bgrpo.distributed.train.training_run as driver

    def fail(*arguments: Any) -> int:
        raise RunError("training failed.\nlearner 0 (process 62 on node-7): it was killed")

    monkeypatch.setattr(driver, "train_and_announce", fail)
    assert main(["train"]) == 1
    assert capsys.readouterr().err == ("error: training failed.\nlearner 0 (process 62 on node-7): it was killed\n")


def test_python_m_bgrpo_is_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["bgrpo", "train", "steps=0"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("bgrpo", run_name="__main__")
    assert ended.value.code == 2
    assert "steps=0: expected a whole number from 1" in capsys.readouterr().err


@pytest.mark.parametrize("job", ["train", "pretrain", "sweep"])
def test_a_job_is_the_command_of_its_name(job: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", f"ray_jobs.{job}", "no_such_key=1"], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ") and "no_such_key" in done.stderr
