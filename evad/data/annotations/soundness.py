"""Checks annotations without opening videos: wrong units, swapped columns, shifted labels, leaks, empty classes."""

from __future__ import annotations

import difflib
from collections import Counter

import numpy as np
import pandas as pd

from evad.data.annotations.classes import UNKNOWN
from evad.data.annotations.findings import MAX_EXAMPLES, Finding, listed
from evad.data.annotations.keyframes import SPLITS, Annotations
from evad.data.annotations.table import row_finding
from evad.files.csv_rows import BOX

MOST = 0.5  # a mistake in a larger share of the lines is reported as a mistake of the whole file
EDGE = 1e-6  # tolerance for rounding of boxes that end at the frame's edge


def annotation_findings(annotations: Annotations) -> list[Finding]:
    checks = (_shifted, _splits, _leaks, _class_examples)
    return [*line_findings(annotations), *(finding for check in checks for finding in check(annotations))]


def line_findings(annotations: Annotations) -> list[Finding]:
    """Check each line of one or more splits, without comparing splits or classes."""
    checks = (_times, _box_order, _box_scale, _box_area, _labels, _duplicates)
    return [*annotations.findings, *(finding for check in checks for finding in check(annotations))]


def class_counts(annotations: Annotations) -> pd.DataFrame:
    """Number of labelled boxes per class (index: class id) and split (columns: train, val)."""
    people = annotations.people
    known = people[people["class_id"] != UNKNOWN]
    counts = pd.crosstab(known["class_id"], known["split"])
    return counts.reindex(index=list(annotations.classes), columns=list(SPLITS), fill_value=0)


def _times(annotations: Annotations) -> list[Finding]:
    rows, clock = annotations.rows[annotations.rows["valid"]], annotations.clock
    message = f"the time is before {clock.first:g}, the start of the videos"
    remedy = "correct the time, or set data.first_time (AVA: data.video_start_second) to the time of the first frame"
    found = row_finding(rows, rows["time"] < clock.first, "time-before-start", "error", message, remedy)
    if clock.unit == "frames":
        fractional = rows["time"] != rows["time"].round()
        remedy = "name the column `time` if it holds seconds"
        found += row_finding(rows, fractional, "frame-not-whole", "error", "a frame number is not whole", remedy)
    return found


def _box_order(annotations: Annotations) -> list[Finding]:
    """Find corners in another order than x1, y1, x2, y2, or width and height in place of x2, y2."""
    people = annotations.people
    x1, y1, x2, y2 = people[BOX].to_numpy().T
    inverted = (x2 < x1) | (y2 < y1)
    if not inverted.any():
        return []
    limit = 1 + EDGE if annotations.boxes == "fractions" else np.inf
    pairs = ((x1 <= y1) & (x2 <= y2)).all()
    sizes = ((x1 + x2 <= limit) & (y1 + y2 <= limit) & (x2 > 0) & (y2 > 0)).all()
    message, remedy, kind = "the box is inverted (x2 < x1 or y2 < y1)", "write x1 <= x2 and y1 <= y2", "box-inverted"
    systematic = inverted.sum() >= 3 and inverted.mean() > 0.2
    if systematic and pairs:
        message = f"{message}, but all boxes are sound if read as x1, x2, y1, y2"
        remedy, kind = "write the corners as x1, y1, x2, y2", "box-column-order"
    elif systematic and sizes:
        message = f"{message}, but all boxes are sound if read as x, y, width, height"
        remedy, kind = "write x2 = x + width and y2 = y + height", "box-width-height"
    return row_finding(people, inverted, kind, "error", message, remedy)


def _box_scale(annotations: Annotations) -> list[Finding]:
    """Find pixels declared as fractions, fractions declared as pixels, and fractions outside the frame."""
    people = annotations.people
    if people.empty:
        return []
    box = people[BOX].to_numpy()
    if annotations.boxes == "pixels":
        if box.max() > 1:
            return []
        message = f"boxes are declared as pixels, but no coordinate exceeds {box.max():g}: they look like fractions"
        remedy = "set data.boxes=fractions"
        return row_finding(people, np.ones(len(people)), "fractions-as-pixels", "error", message, remedy)
    pixels = box.max(axis=1) > 2
    if pixels.mean() > MOST:
        message = f"boxes are declared as fractions, but coordinates reach {box.max():g}: they look like pixels"
        remedy = "set data.boxes=pixels, or divide x by the frame's width and y by its height"
        return row_finding(people, pixels, "pixels-as-fractions", "error", message, remedy)
    return outside_frame(people, box, annotations)


def outside_frame(people: pd.DataFrame, fractions: np.ndarray, annotations: Annotations) -> list[Finding]:
    """Boxes completely or partly outside the frame; `fractions` are the (n, 4) boxes of `people`, xyxy."""
    x1, y1, x2, y2 = fractions.T
    wholly = (x1 >= 1) | (y1 >= 1) | (x2 <= 0) | (y2 <= 0)
    partly = ~wholly & ((fractions < -EDGE) | (fractions > 1 + EDGE)).any(axis=1)
    hint = f"boxes are x1, y1, x2, y2 in {annotations.boxes} of the frame"
    cut = "" if annotations.overhang == "error" else " and is cut off there"
    message = f"the box reaches over the frame's edge{cut}"
    return [
        *row_finding(people, wholly, "box-outside", "error", "the box is outside the frame", hint),
        *row_finding(people, partly, "box-overhang", annotations.overhang, message, hint),
    ]


def _box_area(annotations: Annotations) -> list[Finding]:
    people = annotations.people
    empty = (people["x1"] == people["x2"]) | (people["y1"] == people["y2"])
    message = "the box has no area: no detection can match it"
    return row_finding(people, empty, "box-degenerate", "warning", message, "correct the box or remove its line")


def _labels(annotations: Annotations) -> list[Finding]:
    """Find labels that are not a class, and ids that start at the wrong number."""
    people, classes = annotations.people, annotations.classes
    unknown = people["class_id"] == UNKNOWN
    if not annotations.given_classes:
        remedy = "write the label, or remove the box as well if there is no person"
        empty = row_finding(people, unknown, "unknown-label", "error", "the box has no label", remedy)
        return [*empty, *_similar_names(annotations)]
    if not unknown.any():
        return []
    texts = Counter(people.loc[unknown, "label"])
    numbers = {int(text) for text in people["label"].unique() if text.lstrip("-").isdecimal()}
    first, last = min(classes), max(classes)
    span = f"{len(classes)} classes with ids {first} to {last}"
    kind, message = "unknown-label", f"not among the {span}: {listed(texts)}"
    remedy = "add the class to the label list, or correct the label"
    if set(texts) == {str(first - 1)}:
        kind = f"labels-from-{first - 1}"
        message = f"labels start at {first - 1}, but the label list ({span}) starts at {first}"
        remedy = f"add 1 to every label, or number the classes from {first - 1} in the label list"
    elif first == 0 and set(texts) == {str(last + 1)} and 0 not in numbers:
        kind, message = "labels-from-1", f"labels start at 1, but the label list ({span}) starts at 0"
        remedy = "subtract 1 from every label, or number the classes from 1 in the label list"
    elif close := _closest(texts, list(classes.values())):
        remedy = f"{remedy}; did you mean {close}?"
    return row_finding(people, unknown, kind, "error", message, remedy)


def _shifted(annotations: Annotations) -> list[Finding]:
    """Find ids that never use the last class: they may start at 0 instead of 1."""
    present = set(annotations.people["class_id"])
    if not annotations.given_classes or UNKNOWN in present:
        return []
    first, last = min(annotations.classes), max(annotations.classes)
    numeric = all(text.isdecimal() for text in annotations.people["label"].unique())
    if not numeric or first != 1 or last in present or len(present) < len(annotations.classes) - 2:
        return []
    message = f"no line has label {last} ({annotations.classes[last]!r}), the last one; ids may start at 0"
    return [Finding("labels-from-0", "warning", message, "compare the labels with the pictures in examples.png")]


def _similar_names(annotations: Annotations) -> list[Finding]:
    """Find class names that differ only by capitals or spaces, if there is no label file."""
    spellings: dict[str, list[str]] = {}
    for name in annotations.classes.values():
        spellings.setdefault("".join(name.lower().replace("_", " ").split()), []).append(name)
    doubled = tuple(" / ".join(names) for names in spellings.values() if len(names) > 1)
    if not doubled:
        return []
    remedy = "spell each class in one way, or list the classes in labels.txt"
    message = "labels that differ only by capitals or spaces are different classes"
    return [Finding("similar-labels", "warning", message, remedy, len(doubled), doubled[:MAX_EXAMPLES])]


def _splits(annotations: Annotations) -> list[Finding]:
    rows = annotations.rows
    remedy = "write train or val"
    found = row_finding(rows, ~rows["split"].isin(SPLITS), "unknown-split", "error", "the split is unknown", remedy)
    for split in SPLITS:
        if not annotations.of(split)["valid"].any():
            message, remedy = f"there is nothing in the {split} split", "assign lines or videos to it"
            found.append(Finding("empty-split", "error", message, remedy))
    return found


def _duplicates(annotations: Annotations) -> list[Finding]:
    rows = annotations.rows[annotations.rows["valid"]]
    repeated = rows.duplicated(["split", "video", "time", *BOX, "label", "actor"])
    message = "the line repeats another line and is used once"
    return row_finding(rows, repeated, "duplicate-line", "warning", message, "remove it")


def _leaks(annotations: Annotations) -> list[Finding]:
    """Find videos and keyframes that are in both splits."""
    train, val = (annotations.of(split) for split in SPLITS)
    shared = val[val["video"].isin(set(train["video"]))]
    if shared.empty:
        return []
    videos = shared["video"].unique()
    instants = pd.MultiIndex.from_frame(train[["video", "time"]])
    same = shared[pd.MultiIndex.from_frame(shared[["video", "time"]]).isin(instants)].drop_duplicates(["video", "time"])
    message = f"{len(videos)} videos are in train and val, so the validation scores are too good"
    remedy = "keep each video in one split"
    found = [Finding("leak-video", "warning", message, remedy, len(videos), tuple(videos[:MAX_EXAMPLES]))]
    message = "the keyframe is in train and in val, so validation tests on training data"
    return found + row_finding(same, np.ones(len(same)), "leak-keyframe", "error", message, remedy)


def _class_examples(annotations: Annotations) -> list[Finding]:
    """Find classes without examples, and classes with far more examples than others."""
    counts = class_counts(annotations)
    counts = counts[counts.index.isin(annotations.evaluated)]
    if counts.empty:
        return [Finding("no-classes", "error", "no class has an example", "label the boxes")]
    found = []
    for split, other in (("train", "cannot be learned"), ("val", "do not count in the mAP")):
        empty = [f"{annotations.classes[number]} (id {number})" for number in counts.index[counts[split] == 0]]
        severity = "info" if split == "val" else "warning"
        if empty:
            message = f"{len(empty)} of {len(counts)} classes have no {split} example and {other}: {listed(empty)}"
            remedy = "" if split == "val" else "annotate examples, or remove the class from the label list"
            found.append(Finding(f"class-empty-{split}", severity, message, remedy, len(empty)))  # type: ignore[arg-type]
    train = counts["train"][counts["train"] > 0]
    if len(train) > 1 and train.max() >= 20 * train.min():
        ids = train.index.to_numpy(np.int64)
        most, least = (annotations.classes[int(ids[place])] for place in (train.argmax(), train.argmin()))
        message = f"classes are uneven: {most!r} has {train.max()} training examples, {least!r} {train.min()}"
        found.append(Finding("class-balance", "info", message, "rare classes lower the mAP"))
    return found


def _closest(texts: Counter[str], names: list[str]) -> str:
    """Suggest class names for unknown labels, such as `'running' for 'runing'`."""
    pairs = ((text, difflib.get_close_matches(text, names, n=1)) for text in list(texts)[:MAX_EXAMPLES])
    return ", ".join(f"{close[0]!r} for {text!r}" for text, close in pairs if close)
