"""Text tables whose separator and quotes nobody declared: lines -> fields, without judging what they mean."""

from __future__ import annotations

import csv
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", " ": "spaces"}
_SAMPLE = 50  # lines that decide on the separator
_SINGLE_QUOTED = re.compile(r"(?:^|[,;\t ])'[^']*'(?:[,;\t ]|$)")


@dataclass(frozen=True)
class TextTable:
    """The fields of a file; a column at a time, as there may be millions of lines.

    Attributes:
        lines: (n,) int64, numbers of the lines that are not blank.
        widths: (n,) int64, how many fields each has.
        columns: As many as the widest line has fields, each n texts, empty where a line is shorter. Spaces around a
            field may be left.
        dialect: The separator and quotes in words.
    """

    lines: np.ndarray
    widths: np.ndarray
    columns: list[list[str]]
    dialect: str

    def record(self, index: int) -> list[str]:
        """Fields of one line."""
        return [column[index].strip() for column in self.columns[: self.widths[index]]]


def read_text_table(path: Path) -> TextTable:
    """All fields of a file. The separator is the one with which most lines have the same, largest number of fields.

    Raises:
        ValueError: The file is empty or no UTF-8 text.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: the file is not UTF-8 text ({error}); save it as UTF-8 csv") from error
    stripped = [line.strip(" \r") for line in text.split("\n")]
    numbers = [number for number, line in enumerate(stripped, 1) if line and not line.isspace()]
    if not numbers:
        raise ValueError(f"{path}: the file has no lines; check the path and whether it is complete")
    lines = [stripped[number - 1] for number in numbers]
    quote = "'" if any(_SINGLE_QUOTED.search(line) for line in lines[:_SAMPLE]) else '"'
    separator = max(_SEPARATORS, key=lambda mark: _common_width(lines[:_SAMPLE], mark, quote))
    quoted = quote in text
    # Millions of lists, one per line, would take long to make and to collect.
    widths, columns = _quoted(lines, separator, quote) if quoted or separator == " " else _plain(lines, separator)
    dialect = _SEPARATORS[separator] + (" with quotes" if quoted else "")
    return TextTable(np.array(numbers, dtype=np.int64), widths, columns, dialect)


def _common_width(sample: Sequence[str], separator: str, quote: str) -> int:
    """Number of fields that most lines have with this separator."""
    widths = Counter(len(_fields(line, separator, quote)) for line in sample)
    return widths.most_common(1)[0][0]


def _fields(line: str, separator: str, quote: str) -> list[str]:
    """Fields of one line; a quote that is not closed ends with it."""
    return next(csv.reader([line], delimiter=separator, quotechar=quote, skipinitialspace=True))


def _plain(lines: list[str], separator: str) -> tuple[np.ndarray, list[list[str]]]:
    """Widths and columns of lines without quotes."""
    widths = np.array([line.count(separator) for line in lines], dtype=np.int64) + 1
    widest = int(widths.max())
    if widths.min() < widest:
        lines = [line + separator * missing for line, missing in zip(lines, (widest - widths).tolist())]
    fields = separator.join(lines).split(separator)
    return widths, [fields[place::widest] for place in range(widest)]


def _quoted(lines: list[str], separator: str, quote: str) -> tuple[np.ndarray, list[list[str]]]:
    """Widths and columns of lines that may hold quotes."""
    records = [_fields(line, separator, quote) for line in lines]
    widths = np.array([len(record) for record in records], dtype=np.int64)
    columns = [[record[place] if place < len(record) else "" for record in records] for place in range(widths.max())]
    return widths, columns
