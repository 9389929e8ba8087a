"""The page's files, and whom its server answers."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sampled_runs import new_run, sampled_run, write_step

from bgrpo.cli.app import main
from bgrpo.config import PretrainConfig, load_config
from bgrpo.display.run_browser.page_server import PageServer, page_server
from bgrpo.display.run_browser.run_page import STATIC, RunPage, script_json, write_page
from bgrpo.errors import UserError
from bgrpo.runs.run_folder import RunFolder

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(JSON)
def test_data_stay_data_wherever_they_stand_in_a_page(value: Any) -> None:
    written = script_json(value)
    assert json.loads(written) == value
    assert written.isascii() and not set(written) & set("<>&\n")


def index_of(folder: Path) -> Any:
    text = (folder / "data" / "index.js").read_text("ascii")
    return json.loads(text.removeprefix("window.bgrpoIndex = ").removesuffix(";\n"))


def groups_of(folder: Path) -> list[Any]:
    found = []
    for number, path in enumerate(sorted((folder / "data").glob("chunk-*.js"))):
        text = path.read_text("ascii")
        assert text.startswith(f"window.bgrpoChunk({number}, ")
        found += json.loads(text.partition(", ")[2].removesuffix(");\n"))
    return found


def test_every_group_is_in_the_file_that_the_index_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bgrpo.display.run_browser.run_page.CHUNK_BYTES", 10_000)
    run = sampled_run(tmp_path, 9)
    page = write_page(run, tmp_path / "page")
    index = index_of(page.folder)
    assert index["chunks"] > 2 and page.notes == () == tuple(index["notes"])
    assert set(page.files) == {*STATIC, "data/index.js", *(f"data/chunk-{n:05d}.js" for n in range(index["chunks"]))}
    assert [entry["step"] for entry in index["steps"]] == list(range(1, 10))
    assert [(item["step"], item["problem"]) for item in groups_of(page.folder)] == [
        (entry["step"], problem) for entry in index["steps"] for problem in entry["problems"]
    ]
    rewards = [line["reward_mean"] for line in run.metrics()]
    assert [entry["reward"] for entry in index["steps"]] == rewards
    assert index["outcomes"] == ["correct", "unparseable", "wrong"]


def test_of_named_parts_the_score_is_drawn_and_every_part_is_told(tmp_path: Path) -> None:
    """Rewards of normalised parts have a mean of 0 in every step: their curve says nothing."""
    run = new_run(
        tmp_path,
        "reward.combine=normalize_then_sum",
        "reward.parts.bleu={metric: bleu, weight: 0.5}",
        "reward.parts.right={check: true}",
        "reward.parts.copies={metric: self_bleu, weight: -0.25}",
        "reward.parts.size={metric: completion_words, weight: 0}",
    )
    write_step(run, 1)
    means = {"part/bleu/mean": 0.25, "part/size/mean": 3.0, "part/right/mean": None}
    run.append_metrics(1, {"reward_mean": 0.0, "score_mean": 0.625, "kl": 0.5, **means})
    index = index_of(write_page(run, tmp_path / "page").folder)
    (entry,) = index["steps"]
    assert index["curve"] == "score" and (entry["score"], entry["reward"]) == (0.625, 0.0)
    assert entry["metrics"] == {"kl": 0.5, "part bleu": 0.25, "part size": 3.0}
    told = "simple, 0.5 bleu + 1 right − 0.25 copies, each by its group's mean and deviation first, watched: size"
    assert index["facts"]["reward"] == told
    assert index_of(write_page(sampled_run(tmp_path / "other", 1), tmp_path / "plain").folder)["curve"] == "reward"


@pytest.mark.parametrize(
    ("overrides", "order"),
    [((), "rank"), (("algorithm=grpo",), "draw"), (("rollout.search=stochastic_beam",), "draw")],
)
def test_samples_have_no_rank(overrides: tuple[str, ...], order: str, tmp_path: Path) -> None:
    run = new_run(tmp_path, *overrides)
    write_step(run, 1)
    assert index_of(write_page(run, tmp_path / "page").folder)["order"] == order


def test_a_page_is_bounded_by_leaving_out_steps_evenly_and_says_so(tmp_path: Path) -> None:
    run = sampled_run(tmp_path, 40)
    size = sum(path.stat().st_size for path in run.samples.iterdir())
    page = write_page(run, tmp_path / "page", max_bytes=size // 4)
    steps = [entry["step"] for entry in index_of(page.folder)["steps"]]
    assert len({later - step for step, later in itertools.pairwise(steps)}) == 1 and len(steps) <= 10
    assert sum(path.stat().st_size for path in (page.folder / "data").iterdir()) < size / 3
    assert "one of every" in page.notes[0]


def test_a_page_written_again_shows_what_has_come_since(tmp_path: Path) -> None:
    run = sampled_run(tmp_path, 2)
    write_page(run, run.path / "show")
    write_step(run, 3)
    assert len(index_of(write_page(run, run.path / "show").folder)["steps"]) == 3


@pytest.mark.parametrize(
    ("overrides", "steps", "why"),
    [
        ((), 0, "This run has made no step yet. Call bgrpo show again"),
        ((), 3, "an older bgrpo, or were removed"),
        (("rollout.keep_samples=0",), 0, "keep_samples is 0. Set it"),
        (("rollout.keep_samples=0",), 3, "keep_samples is 0. Set it"),
    ],
)
def test_a_run_without_samples_says_why_and_what_to_do(
    tmp_path: Path, overrides: tuple[str, ...], steps: int, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = new_run(tmp_path, *overrides)
    for step in range(1, steps + 1):
        run.append_metrics(step, {"reward_mean": 0.0})
    assert main(["show", str(run.path), "--no-serve"]) == 0
    said = capsys.readouterr().out
    assert why in said
    assert index_of(run.path / "show")["notes"]


def test_how_far_a_run_has_come_and_how_much_of_it_is_kept(tmp_path: Path) -> None:
    run = sampled_run(tmp_path, 2, 6, "steps=7", "rollout.prompts_per_step=1")
    facts = index_of(write_page(run, tmp_path / "page").folder)["facts"]
    assert (facts["steps"], facts["kept"]) == ("2 of 7", "1 of 1 groups a step")
    run = sampled_run(tmp_path / "epochs", 2, 6, "epochs=3", "rollout.prompts_per_step=4")
    assert index_of(write_page(run, tmp_path / "page").folder)["facts"]["steps"] == "2"
    run.update(problems={}, steps=12)
    facts = index_of(write_page(run, tmp_path / "page").folder)["facts"]
    assert (facts["steps"], facts["kept"]) == ("2 of 12", "2 of 4 groups a step")


def test_damaged_samples_are_counted_and_damaged_metrics_do_not_matter(tmp_path: Path) -> None:
    run = sampled_run(tmp_path, 2)
    (path,) = run.samples.iterdir()
    path.write_bytes(b"\xff\xfe{\n" + path.read_bytes())
    run.metrics_path.unlink()
    page = write_page(run, tmp_path / "page")
    assert page.notes == ("1 damaged lines of samples were left out.",)
    assert [entry["reward"] for entry in index_of(page.folder)["steps"]] == [None, None]


def _sweep(folder: Path) -> list[str]:
    (folder / "swept").mkdir()
    (folder / "swept" / "sweep.yaml").write_text("{}")
    return ["swept"]


def _pretraining(folder: Path) -> list[str]:
    RunFolder.create(load_config(PretrainConfig, None, [f"run.dir={folder}", "run.name=pre"]), None)
    return ["pre"]


def _damaged(folder: Path) -> list[str]:
    RunFolder(sampled_run(folder, 1).path).config_path.write_text("[")
    return [str(folder / "runs" / "told")]


def _precious(folder: Path) -> list[str]:
    (folder / "home").mkdir()
    (folder / "home" / "thesis.tex").touch()
    return [str(sampled_run(folder, 1).path), "--out", str(folder / "home")]


def _file(folder: Path) -> list[str]:
    (folder / "file").touch()
    return [str(sampled_run(folder, 1).path), "--out", str(folder / "file")]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: ["nothing"], "no run 'nothing'"),
        (lambda folder: (folder / "empty").mkdir() or ["empty"], "no run 'empty'"),
        (_sweep, "is a sweep; show one of its trials"),
        (_pretraining, "is a run of bgrpo pretrain"),
        (_damaged, "cannot be read as YAML"),
        (_precious, "holds 'thesis.tex'"),
        (_file, "is no folder"),
        (lambda folder: [str(sampled_run(folder, 1).path), "--out", "/proc/x"], "cannot be written"),
    ],
    ids=["nothing", "empty", "sweep", "pretraining", "damaged", "another folder", "a file", "not writable"],
)
def test_what_cannot_be_shown_is_one_line(
    make: Any, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", "--runs", str(tmp_path), "--no-serve", *make(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
    assert not (tmp_path / "home").exists() or [path.name for path in (tmp_path / "home").iterdir()] == ["thesis.tex"]


# --- the server ---


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> RunPage:
    folder = tmp_path_factory.mktemp("served")
    written = write_page(sampled_run(folder, 2), folder / "page")
    (folder / "secret.js").write_text("secret")
    (written.folder / "late.js").write_text("not of the page")
    return written


@pytest.fixture
def server(page: RunPage) -> Iterator[PageServer]:
    with page_server(page) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def ask(server: PageServer, path: str, method: str = "GET", host: str | None = None) -> tuple[int, bytes, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=240)
    connection.putrequest(method, path, skip_host=True, skip_accept_encoding=True)
    for name in (host or server.hosts[0]).split("|"):
        if name != "none":
            connection.putheader("Host", name)
    connection.endheaders()
    answer = connection.getresponse()
    return answer.status, answer.read(), answer.headers


def test_the_pages_files_are_served_and_nothing_may_be_fetched_from_elsewhere(
    server: PageServer, page: RunPage
) -> None:
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{32}/", server.url)
    for name in page.files:
        status, content, headers = ask(server, server.prefix + name, host=server.hosts[1])
        assert (status, content) == (200, (page.folder / name).read_bytes())
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self'")
        assert (headers["X-Content-Type-Options"], headers["Referrer-Policy"]) == ("nosniff", "no-referrer")
    assert ask(server, server.prefix)[1] == (page.folder / "index.html").read_bytes()
    status, content, headers = ask(server, server.prefix, method="HEAD")
    assert (status, content) == (200, b"") and int(headers["Content-Length"]) > 1000


@pytest.mark.parametrize(
    "path",
    ["/", "/index.html", "/{other}/", "/{token}", "{prefix}../secret.js", "{prefix}%2e%2e/secret.js",
     "{prefix}late.js", "{prefix}data", "{prefix}data/", "{prefix}/index.html", "{prefix}index.html?x", "{prefix}\xe9",
     "{prefix}data/../index.html", "{prefix}/etc/passwd"],
)  # fmt: skip
def test_nothing_else_is_served(server: PageServer, path: str) -> None:
    token = server.prefix.strip("/")
    asked = path.format(prefix=server.prefix, token=token, other=token[:-1] + "?")
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=240)
    connection.putrequest("GET", "/x", skip_host=True)
    connection._buffer[0] = f"GET {asked} HTTP/1.1".encode("latin-1")  # type: ignore[attr-defined]  # as it is
    connection.putheader("Host", server.hosts[0])
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 404
    assert b"secret" not in answer.read()


@pytest.mark.parametrize(
    "host", ["none", "evil.example", "127.0.0.1", "127.0.0.1:1", "evil.example|{own}", "{own}|{own}"]
)
def test_a_page_asked_for_under_another_name_is_refused(server: PageServer, host: str) -> None:
    """As a name that is rebound to 127.0.0.1 would."""
    assert ask(server, server.prefix, host=host.format(own=server.hosts[0]))[0] == 421


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_the_server_only_reads(server: PageServer, method: str) -> None:
    assert ask(server, server.prefix, method=method)[0] == 501


def test_tokens_differ_and_a_taken_port_is_one_line(server: PageServer, page: RunPage) -> None:
    with page_server(page) as other:
        assert other.prefix != server.prefix
    with (
        pytest.raises(UserError, match=f"--port {server.server_port}: cannot be listened on"),
        page_server(page, server.server_port),
    ):
        pass


def test_the_command_serves_until_it_is_interrupted(tmp_path: Path) -> None:
    run = sampled_run(tmp_path, 1)
    command = [sys.executable, "-m", "bgrpo.cli.app", "show", str(run.path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == f"page: {run.path}/show/index.html\n"
        url = process.stdout.readline().split()[1]
        connection = http.client.HTTPConnection(url.split("/")[2], timeout=240)
        connection.request("GET", f"/{url.split('/', 3)[3]}")
        assert connection.getresponse().status == 200
        process.send_signal(2)
        assert process.wait(20) == 0
