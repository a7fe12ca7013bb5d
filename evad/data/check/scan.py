"""Annotations of any data module, read without stopping at the first bad line."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from evad.data.annotations.findings import Finding
from evad.data.annotations.keyframes import UNKNOWN, Annotations, Clock, find_class_ids
from evad.data.annotations.soundness import SPLITS
from evad.data.annotations.table import BOX, read_table
from evad.data.clips.ava import AVADataModule
from evad.data.clips.custom import CustomDataModule
from evad.data.clips.datamodule import ActionDataModule, ReaderSource
from evad.files.label_map import read_label_map
from evad.structures import Keyframe


def scan(datamodule: ActionDataModule) -> Annotations:
    """All annotations of a data module, sound or not.

    Modules that read tables are read line by line; of others (tubes) the keyframes are taken, which their strict
    readers give or refuse.

    Raises:
        ValueError, OSError: They cannot be read at all.
    """
    if isinstance(datamodule, CustomDataModule):
        return datamodule.scan()
    if isinstance(datamodule, AVADataModule):
        return _scan_ava(datamodule)
    return _scan_keyframes(datamodule)


def sources(datamodule: ActionDataModule, annotations: Annotations) -> dict[str, ReaderSource]:
    """What opens the videos of each split that has any annotation."""
    splits = [split for split in SPLITS if len(annotations.of(split))]
    if isinstance(datamodule, CustomDataModule):
        return {split: datamodule.source(split) for split in splits}  # type: ignore[arg-type]
    if isinstance(datamodule, AVADataModule):
        return {split: datamodule.source(split) for split in splits}  # type: ignore[arg-type]
    return {split: datamodule.read_split(split)[1] for split in splits}  # type: ignore[arg-type]


def _scan_ava(datamodule: AVADataModule) -> Annotations:
    """AVA's files; lines that the settings leave out are left out here too, and counted."""
    folder = datamodule.root / "annotations"
    version = datamodule.version
    names = read_label_map(folder / datamodule.label_map.format(version=version))
    ids = list(range(1, datamodule.num_outputs + 1)) if datamodule.num_outputs else sorted(names)
    classes = {number: names.get(number, f"action {number}") for number in ids}
    tables, findings = [], []
    for split, given in datamodule.csv_names.items():
        for name in [given] if isinstance(given, str) else given:
            table = read_table(folder / name.format(version=version))
            tables.append(table.rows.assign(split=split))
            findings += table.findings
    rows, left_out = _left_in(datamodule, pd.concat(tables, ignore_index=True))
    return Annotations(
        rows=rows.assign(class_id=find_class_ids(rows["label"], classes)),
        classes=classes,
        evaluated=sorted(names),
        boxes="fractions",
        clock=Clock("seconds", datamodule.video_start_second, datamodule.annotated_fps),
        given_classes=True,
        overhang="error",
        findings=findings + left_out,
    )


def _left_in(datamodule: AVADataModule, rows: pd.DataFrame) -> tuple[pd.DataFrame, list[Finding]]:
    """Rows that the data module uses, and findings about the others."""
    found = []
    if datamodule.valid_seconds is not None:
        low, high = datamodule.valid_seconds
        inside = rows["time"].between(low, high) | ~rows["valid"]
        if not inside.all():
            share = 1 - inside.mean()
            message = f"{share:.0%} of the lines are outside seconds {low:g} to {high:g} and left out"
            remedy = "set data.valid_seconds=null, and data.video_start_second to the second your videos begin at"
            wrong = share > 0.5
            severity = "error" if wrong else "info"
            found.append(
                Finding("seconds-left-out", severity, message, remedy if wrong else "", int((~inside).sum()))  # type: ignore[arg-type]
            )
        rows = rows[inside]
    if datamodule.excluded_csv is not None:
        name = datamodule.excluded_csv.format(version=datamodule.version)
        path = datamodule.root / "annotations" / name
        excluded = read_table(path, ava_widths=(2,)).rows if path.stat().st_size else rows.iloc[:0]
        instants = pd.MultiIndex.from_frame(excluded[["video", "time"]])
        out = (rows["split"] == "val") & pd.MultiIndex.from_frame(rows[["video", "time"]]).isin(instants)
        if out.any():
            message = f"{out.sum()} lines of frames in {name} are left out"
            found.append(Finding("excluded", "info", message, count=int(out.sum())))
        rows = rows[~out]
    return rows.reset_index(drop=True), found


def _scan_keyframes(datamodule: ActionDataModule) -> Annotations:
    """What the strict reader of a data module gives; the lines it is from are not known."""
    datamodule.setup("fit")
    parts = [
        _keyframe_rows(data.keyframes, datamodule.class_ids).assign(split=split)
        for split, data in (("train", datamodule.train_dataset), ("val", datamodule.val_dataset))
    ]
    rows = pd.concat(parts, ignore_index=True)
    rate = datamodule.sampler.annotated_fps
    if rate is not None:
        rows["time"] /= rate
    return Annotations(
        rows=rows,
        classes={number: datamodule.class_names.get(number, f"action {number}") for number in datamodule.class_ids},
        evaluated=list(datamodule.evaluated),
        boxes="fractions",
        clock=Clock("frames" if rate is None else "seconds", 0.0, rate),
        given_classes=True,
        overhang="warning",
        findings=[],
    )


def _keyframe_rows(keyframes: Sequence[Keyframe], ids: Sequence[int]) -> pd.DataFrame:
    """Rows as of an annotation table, one per label of each box, and one per keyframe with nobody in it."""
    counts = np.array([len(keyframe.boxes) for keyframe in keyframes], dtype=np.int64)
    boxes = np.concatenate([np.zeros((0, 4)), *(keyframe.boxes for keyframe in keyframes)])
    actors = np.concatenate([np.zeros(0, np.int64), *(keyframe.actors for keyframe in keyframes)])
    labels = np.concatenate([np.zeros((0, len(ids)), np.float32), *(keyframe.labels for keyframe in keyframes)])
    person, column = np.nonzero(labels)
    empty = np.flatnonzero(counts == 0)
    place = np.concatenate([np.repeat(np.arange(len(keyframes)), counts)[person], empty])
    numbers = np.concatenate([np.array(ids, dtype=np.int64)[column], np.full(len(empty), UNKNOWN)])
    rows = pd.DataFrame(np.concatenate([boxes[person], np.full((len(empty), 4), np.nan)]), columns=BOX)
    rows["nobody"] = numbers == UNKNOWN
    rows["class_id"] = numbers
    rows["label"] = np.where(rows["nobody"], "", numbers.astype(str))
    rows["actor"] = np.concatenate([actors[person], np.full(len(empty), -1)]).astype(str)
    rows["video"] = np.array([keyframe.video for keyframe in keyframes], dtype=object)[place]
    rows["timestamp"] = np.array([keyframe.timestamp for keyframe in keyframes], dtype=object)[place]
    rows["time"] = np.array([keyframe.position for keyframe in keyframes], dtype=np.float64)[place]
    return rows.assign(file="", line=0, valid=True)
