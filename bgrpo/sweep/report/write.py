"""The report of a sweep, or of one run, made again from its folder alone, while it runs too."""

from __future__ import annotations

from pathlib import Path

from bgrpo.config import TrainConfig
from bgrpo.display.run_report import plot_report
from bgrpo.errors import UserError
from bgrpo.evaluation.comparison import EvaluationComparison
from bgrpo.files import write_atomically
from bgrpo.runs.folder import RunFolder
from bgrpo.sweep.report.exports import write_exports
from bgrpo.sweep.report.page import render_page
from bgrpo.sweep.report.pictures import draw_pictures
from bgrpo.sweep.report.records import is_sweep, read_steps, read_sweep
from bgrpo.sweep.report.summary import SweepSummary, summarize


def write_sweep_report(folder: Path) -> Path:
    """Write ``report/`` in a sweep's folder: index.html, pictures, trials.csv, curves.csv and summary.json.

    Returns:
        Path of ``index.html``.

    Raises:
        UserError: not a sweep's folder, or it cannot be written.
    """
    return write_report_of(summarize(read_sweep(folder)))


def write_report_of(summary: SweepSummary) -> Path:
    """The files of :func:`write_sweep_report`, for numbers that are worked out already."""
    report = summary.sweep.folder / "report"
    try:
        report.mkdir(exist_ok=True)
        write_exports(summary, report)
        pictures = draw_pictures(summary, report)
        write_atomically(report / "index.html", render_page(summary, pictures, report))
    except OSError as error:
        raise UserError(f"{report}: the report cannot be written ({error.strerror or error})") from error
    return report / "index.html"


def write_run_report(run: RunFolder) -> Path:
    """Draw a run's ``report.png`` again from its folder, as far as it has come."""
    config = run.load_config(TrainConfig)
    comparison = EvaluationComparison.load(run.evaluation_path) if run.evaluation_path.is_file() else None
    plot_report(read_steps(run.metrics_path, []), comparison, f"{run.name} · {config.algorithm}", run.report_path)
    return run.report_path


def find_folder(name: str, runs: Path) -> Path:
    """The folder of a sweep or run.

    Args:
        name: its name, or the path of its folder.
        runs: folder of all runs.

    Raises:
        UserError: there is none.
    """
    for path in (Path(name), runs / name):
        if is_sweep(path) or (path / "run.json").is_file():
            return path
    known = sorted(path.name for path in runs.glob("*") if is_sweep(path) or (path / "run.json").is_file())
    hint = f"it holds {', '.join(known[-5:])}" if known else "it holds none; give the path, or --runs DIR"
    raise UserError(f"no sweep or run {name!r} in {runs}/: {hint}")
