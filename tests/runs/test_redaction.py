"""Passwords are hidden wherever something is kept or shown, and little else is."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bgrpo.cli.app import main
from bgrpo.cli.measure import Decoding
from bgrpo.config import PretrainConfig, TrackingSection, TrainConfig, load_config
from bgrpo.distributed.train.failures import record_failure
from bgrpo.distributed.watch.run_log import RunLog
from bgrpo.errors import UserError
from bgrpo.runs import redaction
from bgrpo.runs.mlflow_tracking import Tracker
from bgrpo.runs.redaction import redact_credentials, redact_tree, remember_secrets
from bgrpo.runs.run_folder import RunFolder, flatten, load_new_config, load_resumed_config
from bgrpo.sweep.sweep_config import SweepConfig
from bgrpo.sweep.sweep_folder import SweepFolder

SECRET = "hunter2-S3CRET"


@pytest.fixture(autouse=True)
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What other tests' command lines gave is forgotten here, and what these give is forgotten there."""
    monkeypatch.setattr(redaction, "_known", set())
    yield


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("http://me:hunter2@host:5000/x", "http://***@host:5000/x"),
        ("postgresql://u:p@ss@db/x?password=s&ssl=on", "postgresql://***@db/x?password=***&ssl=***"),
        ("two: ftp://a:b@c and https://d@e", "two: ftp://***@c and https://***@e"),
        ("//u:pa/SECRET@h", "//***@h"),
        ("https://h/x?api_key=SECRET&x=y#access_token=SECRET", "https://h/x?api_key=***&x=***#access_token=***"),
        ("https://h/x?SECRET", "https://h/x?***"),
        ("failed with url: /api/x?key=SECRET (Caused by", "failed with url: /api/x?key=*** (Caused by"),
        ("to=http%3A%2F%2Fu%3ASECRET%40h%2Fx", "to=http%3A%2F%2F***%40h%2Fx"),
        ("TOKEN=abc Secret=d", "TOKEN=*** Secret=***"),
        ("{'password': 'SECRET', \"api_key\": \"SECRET\"}", "{'password': '***', \"api_key\": \"***\"}"),
        ("Authorization: Bearer SECRET", "Authorization: Bearer ***"),
        ("authorization=SECRET", "authorization=***"),
        ("a Bearer SECRETSECRET", "a Bearer ***"),
        ("no token hf_aSECRETb or sk-SECRETSECRETSECRET.", "no token *** or ***."),
        ("a@b.c or http://host/a or ./x?y or 7 // 2", "a@b.c or http://host/a or ./x?y or 7 // 2"),
        ("rollout.max_new_tokens=64, tokens: 5, #steps=3", "rollout.max_new_tokens=64, tokens: 5, #steps=3"),
        ("import hf_transfer, a secret reward, bearer of news", "import hf_transfer, a secret reward, bearer of news"),
        ("", ""),
    ],
)  # fmt: skip
def test_what_is_hidden(text: str, shown: str) -> None:
    assert redact_credentials(text) == shown
    assert redact_credentials(shown) == shown


IN_URLS = st.text(st.characters(codec="utf-8", exclude_categories=["Z", "C"], exclude_characters="\"'<>"), min_size=1)
PLACES = ["http://u:{}@h/x", "//{}@h", "postgresql+psycopg://u:{}@h:1/d?ssl=on"]
IN_QUERIES = st.text("abcXYZ019.-_~%+/=:", min_size=1)
QUERIES = [
    "http://h/x?api_key={}&a=b", "see https://h?a&b={}", "/api/x?a=b&c={}", "http://u:p@h/x?a={}#f", "token={}",
    "http://h#t={}",
]  # fmt: skip


@given(IN_URLS, st.sampled_from(PLACES), st.sampled_from(["", "error in {}: ", "tracking.uri="]))
@example("pa/SECRET", PLACES[0], "")
@example("p@/s@", PLACES[0], "")
@example("p?SEC#RET", PLACES[1], "")
def test_nothing_is_left_of_users_and_passwords(secret: str, place: str, before: str) -> None:
    assert redact_credentials(before + place.format(secret)) == redact_credentials(before + place.format("user:p"))


@given(IN_QUERIES, st.sampled_from(QUERIES))
@example("SECRET=", QUERIES[0])
def test_nothing_is_left_of_values(secret: str, place: str) -> None:
    assert redact_credentials(place.format(secret)) == redact_credentials(place.format("x"))


@given(
    st.text(st.characters(codec="utf-8"), min_size=redaction.SHORTEST_KNOWN),
    st.sampled_from(["k=http://u:{}@h/x", "k=//{}@h", "k=x://h?a={}", "password={}"]),
    st.sampled_from(["could not translate host name {} to address", "{}", "[{}]"]),
)
@example("p w'd \" <x>", "k=http://u:{}@h/x", "{}")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_an_argument_held_is_hidden_wherever_it_occurs(secret: str, argument: str, message: str) -> None:
    """A library may show a part of a URL only."""
    if "?" in argument and any(mark in secret for mark in "?&#;=@"):
        return  # that is several values, or a user
    if argument == "k=//{}@h" and ":" in secret:
        secret = secret.replace(":", ".")
    remember_secrets([argument.format(secret)])
    assert message.format("") == "" or secret not in redact_credentials(message.format(secret))


CONFIGURED = {
    "url": "tracking: {uri: 'http://me:k9-hidden-k9@h/x'}",
    "user": "tracking: {uri: 'http://k9-hidden-k9@h/x'}",
    "query": "reward: {parts: {p: {url: 'http://h/x?sig=k9-hidden-k9'}}}",
    "option": "task: {options: {api_key: k9-hidden-k9}}",
    "nested option": "task: {options: {servers: [{password: k9-hidden-k9}]}}",
    "list": "task: {options: {tokens: {secret: [a, k9-hidden-k9]}}}",
}


@pytest.mark.parametrize("place", CONFIGURED)
@pytest.mark.parametrize("read", ["train", "evaluate"])
def test_what_a_configuration_held_is_hidden_wherever_it_occurs(place: str, read: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(CONFIGURED[place])
    if read == "train":
        load_new_config(TrainConfig, str(path), [])
    else:
        Decoding.chosen("shipped", str(path), [], None, 1)
    assert redact_credentials("could not translate k9-hidden-k9 to an address") == (
        "could not translate *** to an address"
    )


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_PASSWORD", "HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "WANDB_API_KEY", "my_secret_x"]
)
def test_what_secret_variables_hold_is_hidden(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, SECRET)
    assert redact_credentials(f"login as {SECRET} failed") == "login as *** failed"


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "RAY_AUTH_TOKEN_PATH", "MONKEY"])
def test_what_other_variables_hold_is_shown(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "/home/u/file")
    assert redact_credentials("see /home/u/file") == "see /home/u/file"


def test_no_text_takes_long() -> None:
    """Each pattern looks at a bounded part of a text: twice as much text, at most about twice the steps."""
    for piece in ("/", "//a", "//a?b", "%2f%2f", "token", "?a=", "'password':'"):
        redact_credentials(piece * 20_000)  # quadratic would be minutes: the suite's time limit


def keys_of_text(model: type[Any]) -> list[str]:
    """Keys of a configuration that may hold text."""
    return [
        key
        for key, value in flatten(model().model_dump(mode="json")).items()
        if value is None or value == {} or isinstance(value, str)
    ]


CASES = [
    *(["train", f"{key}={{}}"] for key in keys_of_text(TrainConfig)),
    *(["pretrain", f"{key}={{}}"] for key in keys_of_text(PretrainConfig)),
    *(["sweep", f"{key}={{}}"] for key in keys_of_text(SweepConfig)),
    *(["train", f"{key}={{}}"] for key in ("no_such.key", "tracking.urii", "steps", "seed", "{}", "task.options.x")),
    ["train", "{}"], ["train", "--config", "{}"], ["train", "--resume", "{}"], ["sweep", "--resume", "{}"],
    ["train", "--submit", "{}"], ["train", "--submit", "http://127.0.0.1:1", "tracking.uri={}"],
    ["evaluate", "--policy", "{}"], ["evaluate", "--data", "{}"], ["evaluate", "--task", "{}"],
    ["decode", "--data", "{}", "--out", "/dev/null"], ["decode", "--data", "/dev/null", "--out", "{}"],
    ["verify", "--data", "{}"], ["verify", "--task-option", "x={}", "--data", "/dev/null"], ["report", "{}"],
    ["generate-data", "--count", "1", "--out", "/dev/null", "--x", "{}"], ["chaos", "--faults", "{}"],
    ["bench", "rollouts", "--case", "{}"], ["{}"], ["train", "--{}"],
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=" ".join)
@pytest.mark.parametrize("form", ["http://user:{}@127.0.0.1:1/x?api_key={}", "//u:pa/{}@h"])
def test_no_command_shows_a_secret(
    case: list[str], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Whatever it refuses: it ends before Ray starts."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    url = form.format(SECRET, SECRET)
    command = [word.replace("{}", url) for word in case]
    if case[0] in ("train", "pretrain", "sweep") and "=" in case[-1] and "--submit" not in case:
        path = "" if case[0] == "pretrain" else "policy.path=/nowhere" if case[0] == "train" else "baseline=none"
        command += [path or "task.name=/nowhere"]
    assert main(command) == 2
    out, err = capfd.readouterr()
    assert SECRET not in out + err and err.startswith(("error: ", "note: "))


def test_no_file_of_a_run_holds_a_secret(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Configuration, run.json, failures, log lines, MLflow; a resumed run wants it again, and takes it."""
    url = f"https://u:{SECRET}@h/x?key={SECRET}"
    overrides = [f"task.options.source={url}", f"run.dir={tmp_path}", "run.name=r"]
    config = load_config(TrainConfig, None, overrides)
    run = RunFolder.create(config, url)
    run.update(command=f"bgrpo train {url}")
    record_failure(run.path, UserError(f"cannot read {url}"), 0)
    record_failure(run.path, ValueError(f"cannot read {url}"), 1)
    tags, params = {"of": url}, flatten(config.model_dump(mode="json"))
    tracker = Tracker.start(TrackingSection(), tmp_path, "r", params, tags)
    tracker.artifact(run.config_path)
    tracker.finish("FAILED")
    SweepFolder(run.path).write_config(SweepConfig())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "run.json", "failures.jsonl", "mlflow.db"} <= {path.name for path in files}
    assert [path for path in files if SECRET.encode() in path.read_bytes()] == []
    record = logging.LogRecord("bgrpo", logging.ERROR, "", 0, "failed: %s", (url,), None)
    assert SECRET not in RunLog("r", "a").format(record)

    with pytest.raises(
        UserError, match=r"run r: task\.options\.source=https://\*\*\*@h/x\?key=\*\*\* was stored without"
    ):
        load_resumed_config(TrainConfig, "r", [f"run.dir={tmp_path}"])
    again = load_resumed_config(TrainConfig, "r", overrides[:2])
    assert again.task.options == {"source": url}
    run.check_same_result(again)


def test_a_tree_keeps_its_form() -> None:
    tree = {"a": [1, None, "//u:p@h"], "b": {"c": True, "d": 0.5}}
    assert redact_tree(tree) == {"a": [1, None, "//***@h"], "b": {"c": True, "d": 0.5}}
    assert yaml.safe_load(yaml.safe_dump(redact_tree(tree))) == json.loads(json.dumps(redact_tree(tree)))


def test_a_traceback_that_ends_the_process_is_redacted_too() -> None:
    code = (
        "from bgrpo.runs.redaction import redacted_output\n"
        "with redacted_output():\n"
        f"    print('at', 'http://u:{SECRET}@h')\n"
        f"    raise ValueError('http://u:{SECRET}@h')"
    )
    ended = subprocess.run([sys.executable, "-"], input=code, capture_output=True, text=True, timeout=240)
    assert ended.stdout == "at http://***@h\n"
    assert ended.returncode == 1 and ended.stderr.endswith("ValueError: http://***@h\n")
