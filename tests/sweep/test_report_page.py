"""The report as files: what it says, that it stands alone, and that it can be made from any state of a sweep."""

from __future__ import annotations

import base64
import csv
import io
import itertools
import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from fabricated_sweep import Arm, Fabrication, fabricate_sweep, read_plan, write_plan
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageFont

from bgrpo.cli.app import main
from bgrpo.config import TrainConfig
from bgrpo.errors import UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.runs.run_folder import RunFolder
from bgrpo.sweep.report.sweep_page import width_sentence
from bgrpo.sweep.report.sweep_records import read_sweep
from bgrpo.sweep.report.sweep_report import _write_csv, write_sweep_report
from bgrpo.sweep.report.sweep_summary import summarize

VOID = ("meta", "img", "br", "link")
WINDOW = 1280 - 15  # px, less a scroll bar
PICTURES = ["learning", "outcomes", "ranks", "results", "validation_steps", "validation_tokens", "widths"]
PLANTED = {"grpo": Arm("grpo", 0.4), "bgrpo_simple": Arm("bgrpo", 0.4), "bgrpo_rank": Arm("bgrpo", 1.6, tokens=18.0)}


class Page(HTMLParser):
    """Text, attributes and nesting of an HTML page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data + " "


class Tables(HTMLParser):
    """Narrowest width of each table in pixels, by its first heading's neighbours; needs no browser.

    A cell is as wide as its text, a heading as its longest word: both as the style sheet says.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        size = 0.875 * 16
        fonts = {weight: findfont(FontProperties(family="DejaVu Sans", weight=weight)) for weight in ("normal", "bold")}
        self._fonts = {weight: ImageFont.truetype(path, size) for weight, path in fonts.items()}
        self._css = html[: html.index("</style>")]
        self._padding = 16 * float(self._rule("th, td", "padding").split()[1].removesuffix("rem"))
        self.widths: list[dict[str, float]] = []
        self._row: list[float] = []
        self._cell: tuple[str, str] | None = None
        self._is_bold = False
        self.feed(html)

    def _rule(self, selector: str, name: str) -> str:
        body = self._css.partition(f"\n{selector} {{")[2].partition("}")[0]
        values = {key.strip(): value.strip() for key, _, value in (part.partition(":") for part in body.split(";"))}
        return values.get(name, "")

    @property
    def window(self) -> float:
        """Pixels that the page leaves to a table."""
        main = float(self._rule("main", "max-width").removesuffix("px"))
        return min(main, WINDOW) - 2 * 16 * float(self._rule("main", "padding").split()[1].removesuffix("rem"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self._columns: list[float] = []
            self._names: list[str] = []
        elif tag == "tr":
            self._row, self._is_bold = [], "decides" in (dict(attrs).get("class") or "")
        elif tag in ("td", "th"):
            self._cell = tag, "text" if dict(attrs).get("class") == "text" else ""
            self._row.append(0.0)

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            tag, kind = self._cell
            font = self._fonts["bold" if tag == "th" or self._is_bold else "normal"]
            wraps = kind == "text" or (tag == "th" and self._rule("th", "white-space") == "normal")
            self._row[-1] = max(font.getlength(part) for part in ([data] if not wraps else data.split() or [""]))
            if tag == "th":
                self._names.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self._cell = None
        elif tag == "tr":
            rows = [self._columns, self._row] if self._columns else [self._row]
            self._columns = [max(widths) for widths in zip(*rows, strict=True)]
        elif tag == "table":
            ends = itertools.accumulate(width + self._padding for width in self._columns)
            self.widths.append(dict(zip(self._names, ends, strict=False)))


def _page(path: Path) -> Page:
    return Page(path.read_text("utf-8"))


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished sweep in which bgrpo_rank is better, with its report."""
    folder = tmp_path_factory.mktemp("sweeps") / "planted"
    fabricate_sweep(folder, Fabrication(PLANTED, seeds=3, problems=300, points=2))
    write_sweep_report(summarize(read_sweep(folder)))
    return folder


def test_a_planted_effect_is_named(planted: Path) -> None:
    text = _page(planted / "report" / "index.html").text
    assert "bgrpo_rank beats grpo in beam-rank score." in text
    assert "bgrpo_simple against grpo: no difference shown" in text
    assert "Budgets differ: bgrpo_rank used 20 % more decoded tokens than grpo." in text
    assert "Budget of each trial: 20 steps" in text


def test_without_an_effect_none_is_shown(tmp_path: Path) -> None:
    arms = {"grpo": Arm("grpo"), "bgrpo": Arm("bgrpo")}
    folder = fabricate_sweep(tmp_path / "same", Fabrication(arms, seeds=5, problems=150, number=4))
    verdict = summarize(read_sweep(folder)).verdict
    assert verdict.headline == "No difference shown between bgrpo and grpo in beam-rank score."
    assert verdict.winner is None


def test_the_page_stands_alone(planted: Path) -> None:
    page = _page(planted / "report" / "index.html")
    assert page.open == []
    images = [attributes["src"] or "" for tag, attributes in page.tags if tag == "img"]
    assert len(images) == len(PICTURES)
    for image in images:
        kind, _, content = image.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(content))).width > 600
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    anchors = {str(attributes.get("id")) for _, attributes in page.tags}
    for tag, attributes in page.tags:
        if tag == "a":
            assert (attributes["href"] or "").removeprefix("#") in anchors
    assert sorted(path.stem for path in (planted / "report").glob("*.png")) == PICTURES


@pytest.mark.parametrize("seeds", [3, pytest.param(11, marks=pytest.mark.long)])
def test_every_column_of_the_tables_is_visible_in_a_small_window(planted: Path, tmp_path: Path, seeds: int) -> None:
    page = planted / "report" / "index.html"
    if seeds != 3:
        folder = fabricate_sweep(tmp_path / "many", Fabrication(PLANTED, seeds=seeds, problems=60, points=1))
        page = write_sweep_report(summarize(read_sweep(folder)))
    tables = Tables(page.read_text("utf-8"))
    by_heading = {name: end for widths in tables.widths for name, end in widths.items()}
    assert {"gain [95 % bootstrap over seeds]", "adjusted p", "conclusion", "GPU-hours"} <= by_heading.keys()
    assert {name: end for name, end in by_heading.items() if end > tables.window} == {}


def test_the_shipped_page_fits_too() -> None:
    page = Path(__file__).resolve().parents[2] / "ray_jobs" / "results" / "three_arms" / "index.html"
    tables = Tables(page.read_text("utf-8"))
    assert 0 < max(end for widths in tables.widths for end in widths.values()) <= tables.window


def test_every_part_is_there(planted: Path) -> None:
    text = _page(planted / "report" / "index.html").text
    for expected in (
        "pass@10",
        "decoded tokens",
        "core-hours",
        "sign-flip p",
        "learner.learning_rate",
        "Selected by the last value: mean over seeds 0.810",
        "sweep.yaml",
        "packages torch",
        "bgrpo_rank-confirm-seed1000 (confirm)",
        "inference compute",
    ):
        assert expected in text, expected


def test_hostile_text_is_escaped(planted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "<b>sweep"
    shutil.copytree(planted, folder)
    plan = read_plan(folder)
    plan["trials"][0] |= {
        "state": "failed",
        "reason": "<script>alert(1)</script>",
        "algorithm": '"><img src=x>$\\frac$',
    }
    write_plan(folder, plan)
    (folder / "sweep.yaml").write_text("metric: beam_rank_score # </pre><script>alert(2)</script>\n", "utf-8")
    page = _page(write_sweep_report(summarize(read_sweep(folder))))
    assert "script" not in {tag for tag, _ in page.tags}
    assert "<script>alert(1)</script>" in page.text
    assert "<script>alert(2)</script>" in page.text
    assert len([tag for tag, _ in page.tags if tag == "img"]) == len(PICTURES)


def test_a_sweep_that_runs_and_one_with_failures(planted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "running"
    shutil.copytree(planted, folder)
    plan = read_plan(folder)
    failed, running, pending = plan["trials"][-3:]
    failed |= {"state": "failed", "reason": "training diverged at step 7: KL 24"}
    running |= {"state": "running", "ended": None}
    pending |= {"state": "pending", "started": None}
    for trial in (failed, running, pending):
        (folder / "trials" / trial["id"] / "evaluation.json").unlink()
    shutil.rmtree(folder / "trials" / pending["id"])
    with (folder / "trials" / running["id"] / "metrics.jsonl").open("a") as file:
        file.write('{"step": 21, "kl": 0.')
    plan["state"] = "running"
    write_plan(folder, plan)
    text = _page(write_sweep_report(summarize(read_sweep(folder)))).text
    assert "training diverged at step 7: KL 24" in text
    assert "Confirm trials of bgrpo_rank that failed: 1;" in text
    assert "without a result yet: bgrpo_rank 2" in text
    assert "1 running, 1 pending, 1 failed" in text
    assert "bgrpo_rank beats" not in text


def test_a_search_without_any_step_still_has_a_page(tmp_path: Path) -> None:
    folder = fabricate_sweep(tmp_path / "early", Fabrication({"grpo": Arm()}, seeds=1, problems=5, steps=1))
    shutil.rmtree(folder / "trials" / "grpo-confirm-seed1000")
    page = _page(write_sweep_report(summarize(read_sweep(folder))))
    assert page.open == []
    assert "No result yet" in page.text
    assert list((folder / "report").glob("*.png")) == []


def test_the_tables_are_the_trials_own_numbers(planted: Path) -> None:
    with (planted / "report" / "curves.csv").open() as file:
        curves = list(csv.DictReader(file))
    name = "bgrpo_rank-confirm-seed1001"
    lines = [json.loads(line) for line in (planted / "trials" / name / "metrics.jsonl").read_text().splitlines()]
    expected = [(line["step"], line["used/tokens"], line["kl"]) for line in lines]
    found = [row for row in curves if row["trial"] == name and row["metric"] == "kl"]
    assert [(float(row["steps"]), float(row["tokens"]), float(row["value"])) for row in found] == expected
    with (planted / "report" / "trials.csv").open() as file:
        trials = {row["id"]: row for row in csv.DictReader(file)}
    comparison = EvaluationComparison.load(planted / "trials" / name / "evaluation.json")
    assert float(trials[name]["test/beam@5/after"]) == comparison.after.metrics()["beam@5"]
    assert trials["grpo-search-01-seed0"]["learner.learning_rate"] == "5e-05"
    assert len(trials) == 15


def test_the_summary_is_strict_json(planted: Path) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    tree = json.loads((planted / "report" / "summary.json").read_text("utf-8"), parse_constant=refuse)
    assert tree["verdict"]["winner"] == "bgrpo_rank"
    assert tree["differences"]["beam_rank_score"]["bgrpo_rank"]["conclusion"] == "better"
    assert tree["arms"]["grpo"]["seeds"] == [1000, 1001, 1002]


def test_a_report_that_cannot_be_written_is_a_users_error(planted: Path, tmp_path: Path) -> None:
    folder = tmp_path / "blocked"
    shutil.copytree(planted, folder, ignore=shutil.ignore_patterns("report"))
    (folder / "report").write_text("in the way", "utf-8")
    with pytest.raises(UserError, match="the report cannot be written"):
        write_sweep_report(summarize(read_sweep(folder)))


def test_the_sentence_about_widths_says_whether_it_halves(planted: Path) -> None:
    arms = {arm.name: width_sentence(arm) for arm in summarize(read_sweep(planted)).arms}
    assert arms["bgrpo_rank"].endswith("the width is at least halved.")
    assert "% less inference compute" in arms["bgrpo_rank"]


def test_the_command_reports_a_sweep_by_name(planted: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", "planted", "--runs", str(planted.parent)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("bgrpo_rank beats grpo in beam-rank score.")
    assert f"report: {planted / 'report' / 'index.html'}" in shown


def test_the_command_redraws_a_single_run_while_it_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = RunFolder.create(TrainConfig.model_validate({"run": {"dir": str(tmp_path), "name": "alone"}}), None)
    run.append_metrics(1, {"reward_mean": 0.5, "kl": 0.0})
    with run.metrics_path.open("a") as file:
        file.write('{"step": 2, "rew')
    assert main(["report", "alone", "--runs", str(tmp_path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"report": str(run.report_path), "conclusions": []}
    assert Image.open(run.report_path).width > 600


def test_the_command_speaks_json_and_names_what_there_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = fabricate_sweep(tmp_path / "known", Fabrication({"grpo": Arm()}, seeds=1, problems=5, steps=1))
    assert main(["report", str(folder), "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["report"] == str(folder / "report" / "index.html")
    assert tree["verdict"]["headline"] == "No comparison: grpo is the only arm."
    assert main(["report", "unknown", "--runs", str(tmp_path)]) == 2
    assert f"no sweep or run 'unknown' in {tmp_path}/: it holds known" in capsys.readouterr().err


def test_reading_a_command_line_needs_nothing_heavy() -> None:
    absent = ["ray", "torch", "transformers", "mlflow", "matplotlib", "scipy", "jinja2"]
    code = f"import sys\nfor name in {absent}: sys.modules[name] = None\nimport bgrpo.sweep.report.sweep_report"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t"])
def test_no_cell_is_a_formula(tmp_path: Path, start: str) -> None:
    """A spreadsheet would compute it; numbers stay numbers, and no text begins a row."""
    path, text = tmp_path / "t.csv", f'{start}HYPERLINK("http://h","x")'
    _write_csv(path, [{"a": text, "b": -0.5, "c": "-", "d": "a=b", "e": None}, {"a": f"x\r{start}1", "f": start}])
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {"a": f"'{text}", "b": "-0.5", "c": "'-", "d": "a=b", "e": "", "f": ""}
    assert (len(rows), rows[1]["a"], rows[1]["f"]) == (2, f"x {start}1", f"'{start}")
