"""Large csv files of numbers, plain or gzipped: read fast when they are well formed, with line and fault when not.

A well-formed file goes through Arrow's parser. Whatever Arrow refuses is read again line by line, which finds the line
to blame.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
from pyarrow import csv as arrow_csv

_ARROW = {str: pa.dictionary(pa.int32(), pa.string()), int: pa.int64(), float: pa.float64()}
_PANDAS = {str: "category", int: "int64", float: "float64"}


@dataclass(frozen=True)
class Layout:
    """Columns of a kind of file.

    Attributes:
        columns: {name: str, int or float}, in the order of the file; every number is finite.
        header: Whether the first line names the columns, exactly so; else the file starts with data.
        ignored: A last column that rows may have and nobody reads.
        short_row: Values of the columns that a short row leaves out; empty: every row is complete.
        hints: {column: remedy} for a value of the wrong type.
    """

    columns: Mapping[str, type]
    header: bool = False
    ignored: str | None = None
    short_row: Mapping[str, float] = field(default_factory=dict)
    hints: Mapping[str, str] = field(default_factory=dict)


def read_rows(path: str | Path, layout: Layout) -> pd.DataFrame:
    """Table of a file.

    Args:
        path: UTF-8 csv, or csv.gz.
        layout: What the file must hold. Blank lines are no rows.

    Returns:
        Table with the layout's columns: str as category, int as int64, float as float64.

    Raises:
        FileNotFoundError: No such file.
        ValueError: File and line of the first malformed row, and what is wrong with it.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist")
    table = _read_with_arrow(path, layout)
    if table is None:
        table = pd.DataFrame(list(_checked_rows(path, layout)), columns=list(layout.columns))
        table = table.astype({name: _PANDAS[kind] for name, kind in layout.columns.items()})
    return table


def write_rows(rows: pd.DataFrame, path: str | Path, header: bool = False) -> None:
    """Write a table as `read_rows` reads it; every float64 survives the round trip."""
    rows.to_csv(path, header=header, index=False)


def _read_with_arrow(path: Path, layout: Layout) -> pd.DataFrame | None:
    """The table, or None if anything in the file is not a plain complete row of finite numbers."""
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


def _checked_rows(path: Path, layout: Layout) -> Iterator[list[object]]:
    """Parsed rows of a file, up to the first malformed one."""
    names = list(layout.columns)
    lines = _text_rows(path)
    if layout.header and (first := next(lines, (1, []))[1]) != names:
        raise ValueError(f"{path}, line 1: the header is {','.join(first)!r}, expected {','.join(names)!r}")
    short = len(names) - len(layout.short_row)
    counts = sorted({short, len(names), len(names) + (layout.ignored is not None)})
    for line, row in lines:
        if len(row) not in counts:
            raise ValueError(
                f"{path}, line {line}: {len(row)} columns, expected {' or '.join(map(str, counts))} "
                f"({', '.join([*names, layout.ignored] if layout.ignored else names)})"
            )
        values = [_value(f"{path}, line {line}", name, text, layout) for name, text in zip(names, row)]
        yield values + [layout.short_row[name] for name in names[len(values) :]]


def _text_rows(path: Path) -> Iterator[tuple[int, Sequence[str]]]:
    """Line number and fields of every line that is not blank."""
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as raw:
            file = io.TextIOWrapper(raw, encoding="utf-8-sig", newline="")
            reader = csv.reader(file)
            yield from ((reader.line_num, row) for row in reader if row)
    except (gzip.BadGzipFile, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} is not a readable csv file: {error}") from error


def _value(where: str, name: str, text: str, layout: Layout) -> object:
    """One field as its type; finite."""
    kind = layout.columns[name]
    try:
        value = kind(text)
    except ValueError:
        wanted = "a whole number" if kind is int else "a number"
        hint = f"; {layout.hints[name]}" if name in layout.hints else ""
        raise ValueError(f"{where}: {name} {text!r} is not {wanted}{hint}") from None
    if kind is float and not math.isfinite(value):
        raise ValueError(f"{where}: {name} is {text}; only finite numbers can be evaluated")
    return value
