"""What ``bgrpo show`` does."""

from __future__ import annotations

from pathlib import Path

from bgrpo.display.run_browser.page_server import page_server
from bgrpo.display.run_browser.run_page import PAGE, write_page
from bgrpo.display.terminal import PlainConsole
from bgrpo.errors import UserError
from bgrpo.runs.run_folder import RunFolder
from bgrpo.sweep.report.sweep_records import is_sweep


def show_run(name: str, runs: Path, out: Path | None, port: int, serve: bool) -> int:
    """Write a run's page, say where it is, and serve it until Ctrl-C."""
    for path in (Path(name), runs / name):
        if is_sweep(path):
            raise UserError(f"{path}: is a sweep; show one of its trials, for example {_trial_of(path)}")
    run = RunFolder.open(runs, name)
    page = write_page(run, out or run.path / "show")
    console = PlainConsole()
    for line in [*page.notes, f"page: {page.folder / PAGE}"]:
        console.print(line, soft_wrap=True)
    if serve:
        with page_server(page, port) as server:
            console.print(f"open {server.url} (Ctrl-C ends)", soft_wrap=True)
            try:
                server.serve_forever()
            except KeyboardInterrupt:
                console.print("ended; the page stays")
    return 0


def _trial_of(sweep: Path) -> str:
    return f"bgrpo show {next((path.parent for path in sorted(sweep.glob('*/*/run.json'))), 'SWEEP/trials/NAME')}"
