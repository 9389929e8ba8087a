"""Rows of the files that people have: JSONL, JSON, CSV, TSV, Parquet, a saved data set's folder, or a Hub id."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bgrpo.errors import UserError, reading, summary
from bgrpo.files import parse_object, readable_file

if TYPE_CHECKING:
    from datasets import Dataset

Row = dict[str, Any]
Placed = tuple[str, int, Row]
"""A row, where it stands, as a user would look for it, and the number in that: of its line, or of the row."""

MOST_CELL = 1 << 24  # characters in one cell of a CSV file
MOST_FILE, MOST_RECORD = 1 << 40, 1 << 26  # bytes of a file of rows, and of what describes a data set
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_ROWS = 1000  # of a data set, turned into Python objects at once


def read_records(source: str, part: str) -> Iterator[Placed]:
    """The rows of one source, each a mapping of columns to plain values.

    Args:
        source: a file (by its suffix, one of :data:`READERS`), the folder of a data set that the ``datasets`` library
            saved, or ``owner/name`` or ``owner/name:split`` of the Hugging Face Hub.
        part: the split to take where a data set holds several and ``source`` names none: ``train``, …

    Raises:
        UserError: no such source, or not readable (with the place).
    """
    path = Path(source).expanduser()
    folder, _, split = str(path).rpartition(":")
    if path.is_dir():
        return _data_set(source, lambda: _saved(source, path, part))
    if folder and Path(folder).is_dir():
        return _data_set(source, lambda: _saved(source, Path(folder), split))
    if reader := READERS.get(path.suffix.lower()):
        return reader(source, readable_file(path, MOST_FILE))
    if path.exists():
        raise UserError(f"{source}: its name does not say how to read it: expected {', '.join(READERS)}")
    return _data_set(source, lambda: _from_hub(source, part))


def _json_lines(source: str, path: Path) -> Iterator[Placed]:
    with _text(source, path) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield f"{source}:{number}", number, _row(f"{source}:{number}", _json(f"{source}:{number}", line))


def _json_array(source: str, path: Path) -> Iterator[Placed]:
    """A list of objects, or an object that holds one under the only key with a list."""
    with _text(source, path) as lines:
        tree = _json(source, "".join(lines))
    if isinstance(tree, dict):
        lists = [value for value in tree.values() if isinstance(value, list)]
        tree = lists[0] if len(lists) == 1 else tree
    if not isinstance(tree, list):
        raise UserError(f"{source}: expected a list of objects, or one object per line in a file named *.jsonl")
    for number, value in enumerate(tree, 1):
        yield f"{source}: row {number}", number, _row(f"{source}: row {number}", value)


def _csv(source: str, path: Path) -> Iterator[Placed]:
    """Every cell is text."""
    csv.field_size_limit(MOST_CELL)
    with _text(source, path) as lines:
        reader = csv.reader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            header = next(reader, [])
            if repeated := sorted({name for name in header if header.count(name) > 1}):
                raise UserError(f"{source}:1: names column {repeated[0]!r} twice")
            for cells in reader:
                place = f"{source}:{reader.line_num}"
                if not cells:
                    continue
                if len(cells) != len(header):
                    raise UserError(f"{place}: has {len(cells)} cells, but the first line names {len(header)} columns")
                yield place, reader.line_num, dict(zip(header, cells, strict=True))
        except csv.Error as error:
            raise UserError(f"{source}:{reader.line_num}: is not CSV: {error}") from error


def _parquet(source: str, path: Path) -> Iterator[Placed]:
    def load() -> Dataset:
        import pyarrow.parquet
        from datasets import Dataset

        return _sound(Dataset(pyarrow.parquet.read_table(path)))

    return _data_set(source, load)


READERS: dict[str, Callable[[str, Path], Iterator[Placed]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json_array,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


def _saved(source: str, path: Path, part: str) -> Dataset:
    from datasets import Dataset, load_from_disk

    if not any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
        raise UserError(
            f"{source}: is a folder, but not of a data set that Dataset.save_to_disk() wrote; name one file "
            f"({', '.join(READERS)})"
        )
    _check_saved(source, path)
    # not mapped into memory: where a file is cut off, the system would end this process
    found = load_from_disk(str(path), keep_in_memory=True)
    return _sound(found if isinstance(found, Dataset) else found[_split(source, list(found), part)])


def _sound(found: Dataset) -> Dataset:
    """The data set, once all that Arrow is to follow in it, such as where a text begins, is known to lead somewhere."""
    found.data.validate(full=True)
    return found


def _check_saved(source: str, folder: Path) -> None:
    """Refuse what the library would wait for, or read elsewhere: all is to be plain files in a folder or a split's."""
    inside = [path for path in folder.iterdir() if path.is_dir()]
    for path in (path for place in (folder, *inside) for path in place.iterdir()):
        if not path.is_dir():
            readable_file(path, MOST_FILE)
    for place in (folder, *inside):
        for name, key in (("state.json", "_data_files"), ("dataset_dict.json", "splits")):
            if (place / name).is_file():
                _check_names(f"{source}: {name}", (place / name), key)


def _check_names(where: str, path: Path, key: str) -> None:
    """Refuse a list of names in a data set's own file that leads out of its folder, or is empty."""
    with reading(f"{where}: cannot be read"):
        listed = parse_object(readable_file(path, MOST_RECORD).read_bytes()).get(key)
        names = [each.get("filename") if isinstance(each, dict) else each for each in listed or ()]
        if not names:  # which the library cannot read
            raise UserError(f"{where}: {key} names nothing: the data set holds no row")
        for name in names:
            if not isinstance(name, str) or name in ("", ".", "..") or Path(name).name != name:
                raise UserError(f"{where}: {key} names {name!r}, expected names in its own folder")


def _from_hub(source: str, part: str) -> Dataset:
    from datasets import get_dataset_split_names, load_dataset

    name, _, split = source.partition(":")
    if not _HUB_ID.fullmatch(name):
        raise UserError(f"{source}: no such file; a data set of the Hugging Face Hub is owner/name")
    return load_dataset(name, split=split or _split(source, get_dataset_split_names(name), part))


def _split(source: str, there: list[str], part: str) -> str:
    """The split asked for, or the only one."""
    if part in there or len(there) == 1:
        return part if part in there else there[0]
    raise UserError(f"{source}: has no split {part!r}; name one of {sorted(there)} as SOURCE:SPLIT")


def _data_set(source: str, load: Callable[[], Dataset]) -> Iterator[Placed]:
    """The rows of what a library loads; its progress bars and log lines go unheard, its errors become one line."""
    import datasets

    verbosity, bars = datasets.logging.get_verbosity(), datasets.utils.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL + 1)
    datasets.disable_progress_bars()
    try:
        rows = load()
        number = 0
        for batch in rows.iter(_ROWS):
            for values in zip(*batch.values(), strict=True):
                number += 1
                yield f"{source}: row {number}", number, dict(zip(batch, values, strict=True))
    except UserError:
        raise
    except Exception as error:  # any of its readers, the file system, the network
        raise UserError(f"{source}: cannot be read: {summary(error)}") from error
    finally:
        datasets.logging.set_verbosity(verbosity)
        if not bars:
            datasets.enable_progress_bars()


@contextmanager
def _text(source: str, path: Path) -> Iterator[Iterable[str]]:
    """The lines of a file."""
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except UnicodeDecodeError as error:
        raise UserError(f"{_first_undecodable(source, path)}, which is not UTF-8 text: save it as UTF-8") from error
    except OSError as error:
        raise UserError(f"{source}: cannot be read: {error.strerror or error}") from error


def _first_undecodable(source: str, path: Path) -> str:
    """The place of the first line that is not UTF-8, and the byte that is not."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                return f"{source}:{number}: holds the byte 0x{line[error.start]:02x} at {error.start + 1}"
    return f"{source}: holds bytes"


def _json(place: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: is not JSON: {error}") from error


def _row(place: str, value: Any) -> Row:
    if not isinstance(value, dict):
        raise UserError(f"{place}: expected an object with columns, found {type(value).__name__}")
    return value
