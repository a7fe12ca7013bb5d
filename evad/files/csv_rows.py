"""Reads csv files and other text tables, plain or gzipped; errors name the line and the reason.

- `read_rows` reads files with known columns. Arrow parses well-formed files quickly; a file that Arrow rejects is read
  again as text to find the malformed line.
- `read_text` reads tables with unknown separator and quotes, and does not interpret the fields.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv as arrow_csv

BOX = ["x1", "y1", "x2", "y2"]
"""Names of the box columns in all tables of this package."""

_TEXT = pa.dictionary(pa.int32(), pa.string())
_ARROW = {str: _TEXT, int: pa.int64(), float: pa.float64()}
_PANDAS = {str: "category", int: "int64", float: "float64"}

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", " ": "spaces"}
_SAMPLE = 50  # lines used to detect the separator
_SINGLE_QUOTED = re.compile(r"(?:^|[,;\t ])'[^']*'(?:[,;\t ]|$)")


@dataclass(frozen=True)
class Layout:
    """Columns of a csv file.

    Attributes:
        columns: {name: str, int or float}, in the order of the file; all numbers must be finite.
        header: Whether the first line is exactly the names of the columns; else the file starts with data.
        ignored: An optional last column that is not read.
        short_row: Default values of the last columns, which rows may omit; if empty, no column may be omitted.
        hints: {column: remedy} to add to errors about a value of the wrong type.
    """

    columns: Mapping[str, type]
    header: bool = False
    ignored: str | None = None
    short_row: Mapping[str, float] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)


def read_rows(path: str | Path, layout: Layout) -> pd.DataFrame:
    """Read a csv file with known columns.

    Args:
        path: UTF-8 csv, or csv.gz.
        layout: Expected columns. Blank lines are skipped.

    Returns:
        Table with the layout's columns: str as category, int as int64, float as float64.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: A row is malformed; the text names the file, the first such line and the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    table = _read_with_arrow(path, layout)
    return _read_checked(path, layout) if table is None else table


def write_rows(rows: pd.DataFrame, path: str | Path, header: bool = False) -> None:
    """Write a table for `read_rows`, which restores every float64 exactly."""
    rows.to_csv(path, header=header, index=False)


def line_of(path: Path, row: int) -> int:
    """Line number of a row, in a file without header."""
    return int(read_text(path, ",").lines[row])


def _read_with_arrow(path: Path, layout: Layout) -> pd.DataFrame | None:
    """The table; None if Arrow rejects the file, or if a row is incomplete or has a number that is not finite."""
    names = list(layout.columns)
    for columns in ([*names, layout.ignored], names) if layout.ignored else (names,):
        try:
            table = arrow_csv.read_csv(
                path,
                read_options=arrow_csv.ReadOptions(column_names=None if layout.header else columns),
                convert_options=arrow_csv.ConvertOptions(
                    column_types={name: _ARROW[kind] for name, kind in layout.columns.items()},
                    include_columns=None if layout.header else names,
                ),
            )
        except (pa.ArrowInvalid, OSError):
            continue
        if table.column_names != names or any(table[name].null_count for name in names):
            return None
        rows = table.unify_dictionaries().to_pandas()
        numbers = rows[[name for name, kind in layout.columns.items() if kind is float]].to_numpy()
        return rows if np.isfinite(numbers).all() else None
    return None


def _read_checked(path: Path, layout: Layout) -> pd.DataFrame:
    """Read a file that Arrow rejected; raises ValueError for the first malformed row."""
    text, names = read_text(path, ","), list(layout.columns)
    first = text.record(0) if len(text.lines) else []
    if layout.header and first != names:
        raise ValueError(f"{path}, line 1: the header is {','.join(first)!r}, expected {','.join(names)!r}")
    rows = slice(int(layout.header), None)
    lines, widths = text.lines[rows], text.widths[rows]
    allowed = sorted({len(names) - len(layout.short_row), len(names), len(names) + (layout.ignored is not None)})
    faults: list[tuple[int, int, str]] = []  # row, column, problem; the smallest comes first in the file
    for row in np.flatnonzero(~np.isin(widths, allowed))[:1]:
        columns = ", ".join([*names, layout.ignored] if layout.ignored else names)
        faults.append((row, -1, f"{widths[row]} columns, expected {' or '.join(map(str, allowed))} ({columns})"))
    table = {}
    for place, name in enumerate(names):
        texts, codes = text.column(place)
        codes, there = codes[rows], widths > place
        values, problems = _values(name, texts, layout)
        is_fault = np.array([problem != "" for problem in problems], dtype=bool)
        faults += [(row, place, problems[codes[row]]) for row in np.flatnonzero(is_fault[codes] & there)[:1]]
        table[name] = np.where(there, np.array(values, dtype=object)[codes], layout.short_row.get(name))
    if faults:
        row, _, problem = min(faults)
        raise ValueError(f"{path}, line {lines[row]}: {problem}")
    return pd.DataFrame(table).astype({name: _PANDAS[kind] for name, kind in layout.columns.items()})


def _values(name: str, texts: np.ndarray, layout: Layout) -> tuple[list[object], list[str]]:
    """Convert the texts of a column to its type; also returns an error text for each, empty if the text is valid."""
    kind = layout.columns[name]
    values: list[object] = []
    problems = []
    for text in texts:
        try:
            value, problem = kind(text), ""
        except ValueError:
            hint = f"; {layout.hints[name]}" if name in layout.hints else ""
            value, problem = 0, f"{name} {text!r} is not {'a whole number' if kind is int else 'a number'}{hint}"
        if kind is float and not math.isfinite(value):
            value, problem = 0, f"{name} is {text}; it must be a finite number"
        values.append(value)
        problems.append(problem)
    return values, problems


class Column(NamedTuple):
    """A column of a text table; stores each distinct text once to save memory.

    Attributes:
        texts: (k,) the distinct texts, without surrounding spaces.
        codes: (n,) int, index into `texts` for each row.
    """

    texts: np.ndarray
    codes: np.ndarray


@dataclass(frozen=True)
class TextTable:
    """The fields of a file.

    Attributes:
        lines: (n,) int64, line numbers of the lines that are not blank.
        widths: (n,) int64, number of fields of each line.
        columns: As many columns as the longest line has fields; shorter lines are filled with empty texts.
        dialect: Description of the separator and quotes.
    """

    lines: np.ndarray
    widths: np.ndarray
    columns: list[Column]
    dialect: str

    def column(self, place: int) -> Column:
        """The column with index `place`; a column of empty texts if no line has so many fields."""
        if place < len(self.columns):
            return self.columns[place]
        return Column(np.array([""], dtype=object), np.zeros(len(self.lines), np.int64))

    def record(self, index: int) -> list[str]:
        return [texts[codes[index]] for texts, codes in self.columns[: self.widths[index]]]


def read_text(path: Path, separator: str | None = None) -> TextTable:
    """Read all fields of a file.

    Args:
        path: UTF-8 text, plain or .gz; may be empty.
        separator: Separator of the fields; None: the separator for which the usual number of fields is the largest.

    Raises:
        ValueError: The file is not UTF-8 text.
    """
    try:
        with (
            gzip.open(path, "rt", encoding="utf-8-sig")
            if path.suffix == ".gz"
            else path.open(encoding="utf-8-sig") as file
        ):
            text = file.read()
    except (gzip.BadGzipFile, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a readable csv file: {error}; save it as UTF-8 text") from error
    stripped = [line.strip(" ") for line in text.split("\n")]
    numbers = [number for number, line in enumerate(stripped, 1) if line and not line.isspace()]
    lines = [stripped[number - 1] for number in numbers]
    quote = "'" if any(_SINGLE_QUOTED.search(line) for line in lines[:_SAMPLE]) else '"'
    separator = separator or max(_SEPARATORS, key=lambda mark: _common_width(lines[:_SAMPLE], mark, quote))
    quoted = quote in text
    split = _split_quoted if quoted or separator == " " else _split_plain
    widths, columns = split(lines, separator, quote) if lines else (np.zeros(0, np.int64), [])
    dialect = _SEPARATORS[separator] + (" with quotes" if quoted else "")
    return TextTable(np.array(numbers, dtype=np.int64), widths, columns, dialect)


def _common_width(sample: Sequence[str], separator: str, quote: str) -> int:
    """The most frequent number of fields per line with this separator."""
    widths = Counter(len(_fields(line, separator, quote)) for line in sample)
    return widths.most_common(1)[0][0] if widths else 0


def _fields(line: str, separator: str, quote: str) -> list[str]:
    """Fields of one line; a quote that is not closed ends at the end of the line."""
    return next(csv.reader([line], delimiter=separator, quotechar=quote, skipinitialspace=True))


def _split_plain(lines: list[str], separator: str, _: str) -> tuple[np.ndarray, list[Column]]:
    widths = np.array([line.count(separator) for line in lines], dtype=np.int64) + 1
    widest = int(widths.max())
    if widths.min() < widest:
        lines = [line + separator * missing for line, missing in zip(lines, (widest - widths).tolist())]
    names = [str(place) for place in range(widest)]
    table = arrow_csv.read_csv(
        io.BytesIO("\n".join(lines).encode()),
        read_options=arrow_csv.ReadOptions(column_names=names),
        parse_options=arrow_csv.ParseOptions(delimiter=separator, quote_char=False),
        convert_options=arrow_csv.ConvertOptions(column_types=dict.fromkeys(names, _TEXT)),
    )
    columns = (column.combine_chunks() for column in table.unify_dictionaries().columns)
    return widths, [_column(column.dictionary.to_pylist(), column.indices.to_numpy()) for column in columns]


def _split_quoted(lines: list[str], separator: str, quote: str) -> tuple[np.ndarray, list[Column]]:
    records = [_fields(line, separator, quote) for line in lines]
    widths = np.array([len(record) for record in records], dtype=np.int64)
    fields = ([record[place] if place < len(record) else "" for record in records] for place in range(widths.max()))
    return widths, [_column(texts, codes) for codes, texts in map(pd.factorize, (np.array(f, object) for f in fields))]


def _column(texts: Iterable[str], codes: np.ndarray) -> Column:
    return Column(np.array([text.strip() for text in texts], dtype=object), codes)
