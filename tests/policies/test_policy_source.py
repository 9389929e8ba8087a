"""Where a policy is looked for: paths are never sent to the Hub, and what is not found is one line that helps."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.policies import source
from bgrpo.policies.io import SHIPPED_POLICY, load_policy
from bgrpo.policies.source import find_policy
from bgrpo.runs.run_folder import load_new_config


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the policy of a run and one of its own; also the user's home."""
    for name in ("runs/first/policy", "mine", "runs/broken"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("runs/first/policy", "mine"):
        for file in ("config.json", "model.safetensors"):
            (tmp_path / name / file).symlink_to(SHIPPED_POLICY / file)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is looked for on the Hub."""
    names: list[str] = []

    def refuse(name: str, what: str) -> Path:
        names.append(name)
        raise UserError("not on the Hub")

    monkeypatch.setattr(source, "_from_hub", refuse)
    return names


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("shiped", "did you mean shipped?"),
        ("Shipped", "did you mean shipped?"),
        ("min", "did you mean mine?"),
        ("runs/frist", "did you mean runs/first/policy?"),
        ("run/first", "did you mean runs/first/policy?"),
        ("run/first/policy", "did you mean runs/first/policy?"),
        ("./mien", "did you mean mine?"),
        ("~/mien", "/mine?"),
        ("runs/other", "no such directory"),
        ("./x", "no such directory"),
        ("../x/y", "no such directory"),
        ("~/x", "no such directory"),
        ("~nobody-of-this-name/x", "not the name of a directory"),
        ("/x/y", "no such directory"),
        ("a/b/c", "no such directory"),
        ("owner/", "no such directory"),
        ("owner/na me", "no such directory"),
        ("owner\\name", "no such directory"),
        ("", "is a file"),
        ("x\x00y", "no such directory"),
        ("x" * 5000, "not the name of a directory"),
        ("https://huggingface.co/owner/name", "no such directory"),
    ],
)
def test_what_looks_like_a_path_is_never_sent_to_the_hub(here: Path, asked: list[str], path: str, message: str) -> None:
    if not path:
        path = "mine/config.json"
    with pytest.raises(UserError) as caught:
        find_policy(path)
    assert message in str(caught.value)
    assert str(caught.value).isprintable() and len(str(caught.value)) < 600
    assert asked == []


@pytest.mark.parametrize("path", ["gpt2", "owner/name", "Qwen/Qwen2.5-0.5B", "broken/model"])
def test_model_ids_are_looked_for_on_the_hub(here: Path, asked: list[str], path: str) -> None:
    with pytest.raises(UserError, match="not on the Hub"):
        find_policy(path)
    assert asked == [path]


@pytest.mark.parametrize("what", ["reward model", "base model"])
@pytest.mark.parametrize("path", ["./x", "mine/config.json", "min", "x" * 5000])
def test_messages_say_what_is_looked_for(here: Path, asked: list[str], what: str, path: str) -> None:
    with pytest.raises(UserError, match=f"^{what} ") as caught:
        find_policy(path, what)
    assert "policy" not in str(caught.value) and asked == []


def test_a_runs_policy_gets_a_name_that_other_processes_find(here: Path) -> None:
    for given in ("~/mine", "mine", "./mine"):
        config = load_new_config(TrainConfig, None, [f"policy.path={given}"])
        assert config.policy.path == str(here / "mine")
    for given in ("shipped", "owner/name"):
        assert load_new_config(TrainConfig, None, [f"policy.path={given}"]).policy.path == given


def test_folders_are_found_at_home_and_runs_are_told_where_their_policy_is(here: Path) -> None:
    assert find_policy("~/mine") == here / "mine"
    with pytest.raises(UserError, match=r"config.json is missing.*did you mean runs/first/policy\?"):
        load_policy("runs/first")


class Hub(BaseHTTPRequestHandler):
    """Answers everything with one status, and counts questions for models."""

    status, code = 404, "RepoNotFound"
    requests = 0

    def do_GET(self) -> None:
        type(self).requests += self.path.startswith("/api/models/")
        self.send_response(self.status)
        self.send_header("X-Error-Code", self.code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """A Hub of our own, and an empty cache."""
    kind = type("OneHub", (Hub,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    yield kind
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, "RepoNotFound", "the Hugging Face Hub has no such model"),
        (403, "GatedRepo", "licence"),
        (429, "", "cannot be asked"),
        (500, "", "cannot be asked"),
        (503, "", "cannot be asked"),
    ],
)
def test_an_unknown_model_is_one_question_and_one_line(
    hub: type[Hub], status: int, code: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    hub.status, hub.code = status, code
    with pytest.raises(UserError, match=message) as caught:
        load_policy("owner/no-such-model")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 400
    assert hub.requests == 1
    assert capfd.readouterr() == ("", "")


def test_a_hub_that_is_away_is_one_line(hub: type[Hub], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="cannot be asked"):
        load_policy("owner/name")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be asked"):
        load_policy("owner/name")
    assert hub.requests == 0


def test_of_a_repository_only_one_copy_of_the_weights_is_fetched() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    others = ["pytorch_model.bin", "consolidated.safetensors", "onnx/model.safetensors", "model.safetensors.index.json"]
    assert source._weight_files([*others, *shards]) == ["model.safetensors.index.json", *shards]
    assert source._weight_files([*others, "model.safetensors"]) == ["model.safetensors"]
