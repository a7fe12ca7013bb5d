"""Finds the classes of a data set, in a label file or among the annotated labels."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

UNKNOWN = -1
"""`class_id` of a label that is not a class, or of a line without a box."""

_LABEL_FILES = ("labels.txt", "label_map.pbtxt", "label_map.txt")


def find_label_file(folder: Path, given: str | None) -> Path | None:
    """Find the file that lists the classes; None if no name was given and no such file exists.

    Args:
        given: Name of the file; None: labels.txt, label_map.pbtxt, label_map.txt, or the only .pbtxt file.

    Raises:
        FileNotFoundError: The given file is missing.
    """
    if given is not None:
        if not (folder / given).is_file():
            raise FileNotFoundError(f"{folder / given}: no such label file; correct data.labels, or leave it out")
        return folder / given
    for name in _LABEL_FILES:
        if (folder / name).is_file():
            return folder / name
    maps = sorted(folder.glob("*.pbtxt"))
    return maps[0] if len(maps) == 1 else None


def derive_classes(labels: pd.Series) -> dict[int, str]:
    """Classes by id, from the annotated labels.

    If all labels are whole numbers, they are the ids. Otherwise the labels are sorted and numbered from 1.
    """
    texts = sorted({text for text in labels.unique() if text})
    numbers = [whole_number(text) for text in texts]
    ids = sorted({number for number in numbers if number is not None})
    return dict(enumerate(texts, 1)) if None in numbers else {number: str(number) for number in ids}


def find_class_ids(labels: pd.Series, classes: Mapping[int, str]) -> pd.Series:
    """Class id of each label, which may be a class name or an id; UNKNOWN if it is neither."""
    by_name = {name: number for number, name in classes.items()}
    ids = {}
    for text in labels.unique():
        number = whole_number(text)
        ids[text] = by_name.get(text, number if number in classes else UNKNOWN)
    return labels.map(ids).astype(np.int64)


def whole_number(text: str) -> int | None:
    """Convert a text such as `3` or `3.0` to a whole number; None if it is something else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
