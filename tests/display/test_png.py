"""Pictures with a palette look as before, and are written completely or not at all."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from bgrpo.display.png import write_png


def drawing() -> Figure:
    figure = Figure(figsize=(5, 4), dpi=90)
    axes = figure.subplots()
    for phase in range(7):
        axes.plot(np.sin(np.arange(200) / 20 + phase), alpha=0.5, linewidth=1 + phase)
    axes.set_title("waves")
    return figure


def test_a_palette_changes_nothing_that_can_be_seen(tmp_path: Path) -> None:
    full = io.BytesIO()
    drawing().savefig(full, format="png", dpi=90)
    write_png(drawing(), tmp_path / "small.png")
    before = np.asarray(Image.open(full).convert("RGB"), np.int64)
    after = np.asarray(Image.open(tmp_path / "small.png").convert("RGB"), np.int64)
    assert before.shape == after.shape == (360, 450, 3)
    assert np.abs(before - after).mean() < 1, "of 255"
    assert (tmp_path / "small.png").stat().st_size < 0.5 * len(full.getvalue())


def test_an_older_picture_outlives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "small.png"
    write_png(drawing(), out)
    before = out.read_bytes()
    monkeypatch.setattr("os.fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "no space")))
    with pytest.raises(OSError, match="no space"):
        write_png(drawing(), out)
    assert out.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["small.png"]
