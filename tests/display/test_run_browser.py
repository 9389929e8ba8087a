"""The page in a headless Chromium, opened from its file and from its server."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sampled_runs
from chromium import Tab, chromium_tab, executable
from sampled_runs import completion, group, new_run, sampled_run, writer

from bgrpo.display.run_browser.page_server import page_server
from bgrpo.display.run_browser.run_page import write_page
from bgrpo.groups import Completion, ScoredGroup
from bgrpo.runs.run_folder import RunFolder
from bgrpo.runs.samples import SampledGroup, SampleReader
from bgrpo.tasks.base import Problem

pytestmark = [
    pytest.mark.skipif(executable() is None, reason="no Chromium on this machine (apt-get install chromium)"),
    pytest.mark.long,
]

LEGEND = {"\u2028": "⟨U+2028⟩", "\u202e": "⟨U+202E⟩", "\u200b": "⟨U+200B⟩", "\0": "␀", "\x1b": "␛"}
EVIL = "<img src=x onerror=alert(1)>\u2028</script><script>alert(2)</script><b>'\"&lt;"
READY = "document.querySelectorAll('#table tbody tr').length"


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tab]:
    with chromium_tab(tmp_path_factory.mktemp("browser")) as opened:
        yield opened
        assert opened.problems == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return sampled_run(tmp_path_factory.mktemp("run"), 12)


@pytest.fixture(scope="module")
def address(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of the page, in several data files."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bgrpo.display.run_browser.run_page.CHUNK_BYTES", 10_000)
        page = write_page(run, tmp_path_factory.mktemp("page") / "show")
    yield (page.folder / "index.html").as_uri()


def seen(text: str) -> str:
    """A text as the page shows it."""
    for hidden, shown in LEGEND.items():
        text = text.replace(hidden, shown)
    return text


def kept(run: RunFolder, step: int, place: int = 0) -> SampledGroup:
    return [item for item in SampleReader(run) if item.step == step][place]


def column(tab: Tab, number: int) -> Any:
    return tab.run(f"[...document.querySelectorAll('#table tbody tr')].map((row) => row.cells[{number}].textContent)")


def choose(tab: Tab, element: str, value: str) -> None:
    tab.run(f"(() => {{ const e = document.getElementById('{element}'); e.value = '{value}'; e.onchange(); }})()")


def shown_step(tab: Tab) -> int:
    return int(tab.run("document.getElementById('step').value"))


def test_from_a_file_and_from_the_server(tab: Tab, run: RunFolder, tmp_path: Path) -> None:
    page = write_page(run, tmp_path / "page")
    with page_server(page) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        for url in (server.url, (page.folder / "index.html").as_uri()):
            tab.open(url)
            tab.wait(READY)
            assert tab.run("document.getElementById('run').textContent") == "told"
            assert column(tab, 2) == [item.text for item in kept(run, 1).completions]
        server.shutdown()
        thread.join()


def test_the_tree_holds_every_completion_once_with_shared_tokens_merged(tab: Tab, run: RunFolder, address: str) -> None:
    tab.open(f"{address}#step=5&group=1")
    tab.wait(READY)
    paths = tab.run("""[...document.querySelectorAll('#tree .leaf')].map((leaf) => {
      const tokens = [];
      for (let item = leaf.closest('li'); item; item = item.parentElement.closest('li')) {
        tokens.unshift(...[...item.querySelectorAll(':scope > .branch .token')].map((t) => t.firstChild.data));
      }
      return [Number(leaf.dataset.rank), tokens];
    })""")
    completions = kept(run, 5, 1).completions
    assert dict(paths) == {item.rank: item.pieces for item in completions} and len(paths) == len(completions)
    prefixes = {tuple(item.tokens[:length]) for item in completions for length in range(1, len(item.tokens) + 1)}
    assert tab.run("document.querySelectorAll('#tree .token').length") == len(prefixes)
    leaf = tab.run("document.querySelector('#tree [data-rank=\"2\"]').textContent")
    second = completions[1]
    assert f"Σ {second.logprob:.2f}".replace("-", "−") in leaf and second.outcome in leaf
    assert f"reward {second.reward:.3f}" in leaf and "length" in leaf


@pytest.mark.parametrize("name", ["rank", "log-probability", "reward", "advantage", "tokens", "part safety"])
@pytest.mark.parametrize("down", [True, False])
def test_sorting(tab: Tab, run: RunFolder, address: str, name: str, down: bool) -> None:
    """Completions without a value come last, equal ones by rank; the tree has the table's order where it can."""
    tab.open(f"{address}#step=4")
    tab.wait(READY)
    choose(tab, "sort", name)
    tab.wait(f"document.getElementById('sort').value === '{name}'")
    if (tab.run("document.getElementById('turn').textContent") == "largest first") != down:
        tab.run("document.getElementById('turn').click()")
    tab.wait(f"document.getElementById('turn').textContent === '{'largest' if down else 'smallest'} first'")
    values = {
        "rank": lambda item: item.rank,
        "log-probability": lambda item: item.logprob,
        "reward": lambda item: item.reward,
        "advantage": lambda item: item.advantage,
        "tokens": lambda item: item.length,
        "part safety": lambda item: item.parts["safety"],
    }
    value = values[name]
    completions = kept(run, 4).completions
    known = sorted((c for c in completions if value(c) is not None), key=lambda c: ((-1) ** down * value(c), c.rank))
    expected = [c.rank for c in known] + [c.rank for c in completions if value(c) is None]
    tab.wait(f"document.querySelector('#table tbody tr').dataset.rank === '{expected[0]}'")
    assert column(tab, 0) == [str(rank) for rank in expected]
    first = tab.run("document.querySelector('#tree .leaf').dataset.rank")
    assert int(first) == expected[0] or name == "part safety"
    sorted_by = tab.run("document.querySelector('#table [aria-sort]:not([aria-sort=none])').textContent")
    assert sorted_by.startswith(name.removeprefix("part "))


def test_steps_by_key_by_slider_and_by_address(tab: Tab, run: RunFolder, address: str) -> None:
    tab.open(address)
    tab.wait(READY)
    tab.run("document.body.focus()")
    for key, step in (("ArrowRight", 2), ("ArrowRight", 3), ("ArrowLeft", 2), ("ArrowLeft", 1), ("ArrowLeft", 1)):
        tab.key(key)
        assert shown_step(tab) == step
    tab.run("(() => { const s = document.getElementById('slider'); s.value = 11; s.oninput(); })()")
    assert shown_step(tab) == 12
    reward = run.metrics()[11]["reward_mean"]
    assert f"reward {reward:.3f}" in tab.run("document.getElementById('figures').textContent")
    assert tab.run("location.hash") == "#step=12&group=0"
    tab.run("document.getElementById('words').focus()")
    tab.key("ArrowLeft")
    assert shown_step(tab) == 12, "a key within a text field moved the step"
    for asked, step in (("7", 7), ("999", 12), ("-5", 1), ("x", 1), ("1e1", 1)):
        tab.run(f"location.hash = 'step={asked}&group=99'")
        tab.wait(f"document.getElementById('step').value === '{step}'")


def test_the_difference_of_one_problem_at_two_steps(tab: Tab, run: RunFolder, address: str) -> None:
    tab.open(f"{address}#step=9&group=0&other=6")
    tab.wait("document.querySelector('#difference caption')")
    assert tab.run("document.querySelector('#difference caption').textContent") == "Problem 3: step 6 → step 9"
    rows = tab.run(
        "[...document.querySelectorAll('#difference tbody tr')].map((r) => [...r.cells].map((c) => c.textContent))"
    )
    now = {item.text: item.rank for item in kept(run, 9).completions}
    then = {item.text: item.rank for item in kept(run, 6).completions}
    assert {row[0]: (row[1], row[2]) for row in rows} == {
        text: (
            "in both" if text in now and text in then else "new" if text in now else "gone",
            f"{then.get(text, '–')} → {now.get(text, '–')}",
        )
        for text in now | then
    }
    for mark, old, fresh in (("del", 6, 9), ("ins", 9, 6)):  # what is marked, and what is not, make up the other one
        pieces = tab.run(f"[...document.querySelectorAll('#difference {mark}')].map((e) => e.textContent)")
        assert set(pieces) <= set(kept(run, old).completions[0].pieces), (mark, fresh)


def test_steps_without_a_common_problem_stand_side_by_side(tab: Tab, run: RunFolder, address: str) -> None:
    tab.open(f"{address}#step=1&group=0")
    tab.wait(READY)
    choose(tab, "other", "2")
    tab.wait("document.querySelectorAll('#difference table').length === 2")
    texts = tab.run("[...document.querySelectorAll('#difference td.text')].map((cell) => cell.textContent)")
    assert texts == [item.text for step in (1, 2) for item in kept(run, step).completions]


@pytest.mark.parametrize("outcome", ["", "correct"])
def test_search_goes_through_all_files_and_leads_to_the_completion(
    tab: Tab, run: RunFolder, address: str, outcome: str
) -> None:
    tab.open(address)
    tab.wait(READY)
    assert tab.run("window.bgrpoIndex.chunks") > 2
    choose(tab, "outcome", outcome)
    tab.run("document.getElementById('words').value = 'OLD'; document.getElementById('search').requestSubmit()")
    expected = [
        (item.step, item.problem, found.rank)
        for item in SampleReader(run)
        for found in item.completions
        if "old" in found.text and outcome in ("", found.outcome)
    ]
    tab.wait(f"document.getElementById('found').textContent === '{len(expected)} found'")
    lines = tab.run("[...document.querySelectorAll('#results button')].map((b) => b.textContent)")
    assert [line.split(" · ")[:2] for line in lines] == [[f"step {s}", f"problem {p}"] for s, p, _ in expected]
    tab.run("document.querySelector('#results li:last-child button').click()")
    tab.wait("document.querySelectorAll('.hit').length === 2")
    assert shown_step(tab) == expected[-1][0]
    assert tab.run("document.querySelector('#table .hit').dataset.rank") == str(expected[-1][2])


def test_the_filter_leaves_only_the_outcome_asked_for(tab: Tab, run: RunFolder, address: str) -> None:
    tab.open(f"{address}#step=2")
    tab.wait(READY)
    choose(tab, "outcome", "wrong")
    wrong = [str(item.rank) for item in kept(run, 2).completions if item.outcome == "wrong"]
    tab.wait(f"document.querySelectorAll('#tree .leaf').length === {len(wrong)}")
    assert column(tab, 0) == wrong
    assert tab.run("document.getElementById('status').textContent") == f"{len(wrong)} of 6 completions shown"


def test_whatever_a_run_wrote_is_shown_as_text(tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampled_runs, "WORDS", [EVIL] * 20)
    monkeypatch.setattr(sampled_runs, "PROBLEMS", [Problem(prompt=EVIL, answer=EVIL, category=EVIL)] * 20)
    run = new_run(tmp_path)
    parts = {EVIL: 1.0, "__proto__": 0.5, "constructor": None}
    wicked = [completion([token, 0], outcome=EVIL, detail=EVIL, parts=parts) for token in (1, 2)]
    for step in (1, 2):
        writer(run).write(step, [group(wicked, 3)])
    page = write_page(run, tmp_path / "page")
    tab.open(f"{(page.folder / 'index.html').as_uri()}#step=1&other=2")
    tab.wait("document.querySelector('#difference caption')")
    tab.run("document.getElementById('words').value = 'onerror'; document.getElementById('search').requestSubmit()")
    tab.wait("document.querySelectorAll('#results li').length === 4")
    assert tab.run("document.querySelectorAll('img, b img, script[src=\"\"], dd *, td.text div *').length") == 0
    assert tab.run("document.querySelectorAll('script').length") == 2
    assert tab.run("document.querySelector('dd').textContent") == seen(EVIL)
    assert column(tab, 2) == [seen(EVIL)] * 2
    assert tab.problems == []


def test_a_run_without_samples_says_so_and_shows_no_empty_controls(tab: Tab, tmp_path: Path) -> None:
    page = write_page(new_run(tmp_path), tmp_path / "page")
    tab.open((page.folder / "index.html").as_uri())
    assert "no step yet" in tab.run("document.getElementById('notes').textContent")
    assert tab.run("document.querySelector('main').hidden")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_fits_its_window_and_can_be_read(tab: Tab, address: str, width: int, dark: bool) -> None:
    """Nothing makes the page scroll sideways; every control has a name; every text has contrast."""
    tab.open(f"{address}#step=9&other=6", width, dark=dark)
    tab.wait("document.querySelector('#difference caption')")
    assert tab.run("document.documentElement.scrollWidth") == width
    unnamed = tab.run("""[...document.querySelectorAll('button, input, select')].filter((e) =>
      !(e.textContent.trim() && e.tagName === 'BUTTON') && !e.labels?.length && !e.ariaLabel).map((e) => e.id)""")
    assert unnamed == []
    low = tab.run(CONTRAST)
    assert low == [], low


HIDDEN = [
    "<end>",
    "a\0b",
    "\u202edesrever",
    "\u200b",
    "   ",
    "\u200d",
    "👩\u200d👩\u200d👧",
    "\x1b[31m",
    "שלום",
    "one\ntwo",
]


def test_what_cannot_be_seen_of_a_text_is_shown(tab: Tab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a check that fails for a hidden character, or text that runs backwards, cannot be understood."""
    monkeypatch.setattr(sampled_runs, "WORDS", HIDDEN)
    run = new_run(tmp_path)
    writer(run).write(1, [group([completion([*range(1, len(HIDDEN)), 0])])])
    tab.open((write_page(run, tmp_path / "page").folder / "index.html").as_uri())
    tab.wait(READY)
    pieces = tab.run("[...document.querySelectorAll('#tree .token')].map((t) => t.firstChild.data)")
    shown = ["a␀b", "⟨U+202E⟩desrever", "⟨U+200B⟩", "␣␣␣", "⟨U+200D⟩", HIDDEN[6], "␛[31m", "שלום", "one⏎two", "<end>"]
    assert pieces == shown
    assert column(tab, 2) == [seen(" ".join(HIDDEN[1:]))]


SIZES = {0.0: "0.000", 1e-7: "1.0e−7", -4e-4: "−4.0e−4", 5e-4: "0.001", 0.25: "0.250", 3.2e11: "3.2e11", -2e6: "−2.0e6"}


def test_values_of_any_size_are_told(tab: Tab, tmp_path: Path) -> None:
    """A small one is not 0.000, and a large one not a row of digits: rewards, advantages, parts, metrics."""
    run = new_run(tmp_path, "reward.parts={mine: {function: 'mine:score'}}")
    found = [
        completion([1, 2 + place, 0], outcome="scored", score=value, parts={"mine": value})
        for place, value in enumerate(SIZES)
    ]
    writer(run).write(1, [ScoredGroup([1], found, list(SIZES), 0, 0)], {0: list(SIZES)})
    for step, value in enumerate(SIZES, 1):
        writer(run).write(step + 1, [group(found)])
        run.append_metrics(step + 1, {"reward_mean": value, "kl": value})
    tab.open((write_page(run, tmp_path / "page").folder / "index.html").as_uri())
    tab.wait(READY)
    texts = list(SIZES.values())
    assert column(tab, 4) == column(tab, 7) == column(tab, 8) == texts
    assert column(tab, 5) == [f"+{text}" if value > 0 else text for value, text in SIZES.items()]
    assert tab.run("document.querySelector('#groups button').textContent") == "problem 0 · rewards −2.0e6 to 3.2e11"
    for step, text in enumerate(texts, 1):
        tab.run(f"location.hash = 'step={step + 1}'")
        tab.wait(f"document.getElementById('step').value === '{step + 1}'")
        assert tab.run("document.getElementById('figures').textContent").endswith(f"reward {text} · kl {text}")


@pytest.mark.parametrize(
    ("rewards", "advantages", "said"),
    [
        ([1.0, 1.0, None], None, "left this group out, for its rewards do not differ"),
        ([None, None, None], None, "left this group out, for its rewards do not differ"),
        ([1.0, 0.0, None], None, "the update left this group out"),
        ([1.0, 0.0, None], [0.5, -0.5, 0.0], "3 of 3 completions shown"),
    ],
)
def test_a_group_without_advantages_says_why(
    tab: Tab, tmp_path: Path, rewards: list[float | None], advantages: list[float] | None, said: str
) -> None:
    run = new_run(tmp_path)
    found = [completion([1, word, 0], outcome="scored") for word in (2, 3, 4)]
    writer(run).write(1, [ScoredGroup([1], found, rewards, 0, 0)], {0: advantages} if advantages else {})
    tab.open((write_page(run, tmp_path / "page").folder / "index.html").as_uri())
    tab.wait(READY)
    assert tab.run("document.getElementById('status').textContent").endswith(said)


@pytest.mark.parametrize(
    "element", ["#table thead th:nth-child(5) button", "#groups button:last-child", "#same button"]
)
def test_the_focus_of_the_keyboard_stays_on_what_was_pressed(tab: Tab, address: str, element: str) -> None:
    tab.open(f"{address}#step=3&group=0")
    tab.wait(READY)
    tab.run(f"document.querySelector('{element}').focus()")
    key = tab.run("document.activeElement.dataset.key")
    tab.run("document.activeElement.click()")
    changed = ["#table [aria-sort=descending]", "#groups button:last-child[aria-pressed=true]", "#difference caption"]
    tab.wait(f"document.querySelector('{', '.join(changed)}')")
    assert tab.run("document.activeElement.dataset.key") == key
    assert tab.run(f"document.activeElement === document.querySelector('{element}')")


def test_any_metric_can_be_drawn_with_its_running_mean(tab: Tab, tmp_path: Path) -> None:
    run = sampled_run(tmp_path, 60, 2)
    tab.open(f"{(write_page(run, tmp_path / 'page').folder / 'index.html').as_uri()}#step=60&group=0")
    tab.wait(READY)
    assert tab.run("[...document.querySelectorAll('#curve-of option')].map((o) => o.value)") == ["reward", "kl"]
    choose(tab, "curve-of", "kl")
    assert tab.run("document.getElementById('curve').ariaLabel") == "Mean kl of each step, from 0.001 to 0.060"
    said = tab.run("document.getElementById('range').textContent")
    assert said == "from 0.001 to 0.060; the strong line is the mean of 3 steps"
    raw, mean = tab.run(
        "[...document.querySelectorAll('#curve path')].map((p) => p.getAttribute('d').split('L').at(-1))"
    )
    assert float(raw.split()[1]) == 4.0
    assert float(mean.split()[1]) == pytest.approx(4.0 + 56 / 59, abs=0.06)  # the mean lags one step behind
    others = [int(text) for text in tab.run("[...document.querySelectorAll('#same button')].map((b) => b.textContent)")]
    there = [step for step in range(1, 60) if 3 in {kept(run, step, place).problem for place in (0, 1)}]
    assert others == sorted({there[0], *there[-11:]})


@pytest.mark.parametrize("width", [1280, 390])
def test_long_names_and_texts_stay_within_their_boxes(tab: Tab, tmp_path: Path, width: int) -> None:
    run = new_run(tmp_path)
    verdict = {"outcome": "error", "detail": "y" * 400, "parts": {"p" * 60: 0.5}}
    found = [completion([1, word, 0], **verdict) for word in (2, 3)]
    long = [Completion(item.tokens, item.logprobs, True, "long " * 3000, item.judged) for item in found]
    writer(run).write(1, [group(long)])
    tab.open((write_page(run, tmp_path / "page").folder / "index.html").as_uri(), width)
    tab.wait(READY)
    wide = (
        "[...document.querySelectorAll('#tree, #tree *')].filter((e) => e.scrollWidth > e.clientWidth && e.clientWidth)"
    )
    assert tab.run(f"{wide}.length") == 0
    assert max(tab.run("[...document.querySelectorAll('#table tr')].map((row) => row.clientHeight)")) < 300
    assert tab.run("document.documentElement.scrollWidth") == width


def test_six_parts_fit_the_table_and_the_score_is_drawn(tab: Tab, tmp_path: Path) -> None:
    names = ["quality", "safety", "diversity", "coherence", "length", "overlap"]
    parts = ", ".join(f"{name}: {{metric: bleu}}" for name in names)
    run = new_run(tmp_path, f"reward.parts={{{parts}}}")
    for step in (1, 2, 3):
        tokens = [[1, 2 + step, rank, 0] for rank in (3, 4, 5)]
        scored = [
            completion(one, outcome="wrong", score=step + one[2], parts=dict.fromkeys(names, 0.5)) for one in tokens
        ]
        writer(run).write(step, [group(scored, 0, step - 1)], {0: [0.0, 0.1, -0.1]})
        run.append_metrics(step, {"reward_mean": 0.0, "score_mean": float(step), "part/safety/mean": 0.75})
    tab.open(f"{(write_page(run, tmp_path / 'page').folder / 'index.html').as_uri()}#step=3")
    tab.wait(READY)
    figures = tab.run("document.getElementById('figures').textContent")
    assert figures.startswith("score 3.000 · reward 0.000") and "part safety 0.750" in figures
    assert tab.run("document.getElementById('curve').ariaLabel") == "Mean score of each step, from 1.000 to 3.000"
    sizes = tab.run("(({ scrollWidth, clientWidth }) => [scrollWidth, clientWidth])(document.getElementById('table'))")
    assert sizes[0] <= sizes[1], "the last columns are out of sight"
    head = tab.run("[...document.querySelectorAll('#table thead th')].map((cell) => cell.textContent)")
    assert head[-6:] == names


CONTRAST = """(() => {
  const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
  const bytes = (...colours) => {
    for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
    return canvas.getImageData(0, 0, 1, 1).data;
  };
  const light = (data) => [0.2126, 0.7152, 0.0722].reduce((sum, weight, i) => {
    const value = data[i] / 255;
    return sum + weight * (value <= 0.03928 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
  }, 0);
  const low = new Set();
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    if (!own || !element.offsetParent || element.closest(':disabled, svg, option')) continue;
    const grounds = [];
    for (let at = element; at; at = at.parentElement) grounds.unshift(getComputedStyle(at).backgroundColor);
    const ground = light(bytes('white', ...grounds));
    const ink = light(bytes('white', ...grounds, getComputedStyle(element).color));
    const ratio = (Math.max(ground, ink) + 0.05) / (Math.min(ground, ink) + 0.05);
    if (ratio < 4.5) low.add(`${element.tagName}.${element.className} ${ratio.toFixed(1)}`);
  }
  return [...low];
})()"""
