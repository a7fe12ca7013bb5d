"""Checks whether the annotated keyframes have boxes of an external detector."""

from __future__ import annotations

from evad.data.annotations.findings import MAX_EXAMPLES, Finding
from evad.data.annotations.keyframes import Annotations
from evad.data.annotations.proposals import boxes_by_frame, read_proposals
from evad.data.clips.ava import AVADataModule
from evad.data.clips.datamodule import ActionDataModule


def proposal_findings(datamodule: ActionDataModule, annotations: Annotations) -> list[Finding]:
    """Check the files of `data.proposals`, which only data modules of AVA's layout can have."""
    if not isinstance(datamodule, AVADataModule) or datamodule.proposals.val is None:
        return []
    names = {"train": datamodule.proposals.train, "val": datamodule.proposals.val}
    return [
        finding
        for split, name in names.items()
        if name is not None
        for finding in _split_findings(datamodule, annotations, split, name)
    ]


def _split_findings(datamodule: AVADataModule, annotations: Annotations, split: str, name: str) -> list[Finding]:
    threshold = datamodule.proposals.threshold
    try:
        path = datamodule.annotation_file(name)
        boxes = read_proposals(path)
    except (ValueError, OSError) as error:
        return [Finding("proposals-unreadable", "error", str(error))]
    found = boxes_by_frame(boxes[boxes["score"] >= threshold])
    rows = annotations.of(split)
    keyframes = rows[~rows["empty"]].drop_duplicates(["video", "time"])
    instants = list(zip(keyframes["video"], keyframes["time"].astype(float)))
    empty = [f"{path}: {video}, {time:g}" for video, time in instants if (video, time) not in found]
    if not empty:
        return []
    message = f"the {split} keyframe has people, but no detected box with a score of {threshold:g} or more"
    if len(empty) < len(instants):
        consequence = "no person is found there" if split == "val" else "only the annotated boxes are trained there"
        remedy = f"{consequence}, unless you lower data.proposals.threshold"
        return [Finding("proposals-none", "warning", message, remedy, len(empty), tuple(empty[:MAX_EXAMPLES]))]
    remedy = "name videos and seconds as the annotations do, or lower data.proposals.threshold"
    return [Finding("proposals-elsewhere", "error", message, remedy, len(empty), tuple(empty[:MAX_EXAMPLES]))]
