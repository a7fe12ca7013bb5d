"""The checks of `evad.data.check` that read no frames, and explanations of a validation mAP of 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from evad.data.annotations.findings import Finding
from evad.data.annotations.keyframes import SPLITS, Annotations
from evad.data.annotations.soundness import annotation_findings
from evad.data.annotations.videos import READ_ERRORS, missing_videos
from evad.data.check.proposals import proposal_findings
from evad.data.clips.datamodule import ActionDataModule
from evad.data.video.sources import ReaderSource

ZERO_CAUSES: dict[str, tuple[str, ...]] = {
    "labels that are not classes, or that start at 0 instead of 1": ("labels-from-0", "labels-from-1", "unknown-label"),
    "boxes in pixels instead of fractions, or the reverse": (
        "pixels-as-fractions",
        "fractions-as-pixels",
        "box-outside",
        "box-overhang",
    ),
    "corners in another order than x1, y1, x2, y2": ("box-column-order", "box-width-height", "box-inverted"),
    "times in a wrong unit or with a wrong start": ("time-before-start", "frame-not-whole", "seconds-left-out"),
    "classes without training examples": ("class-empty-train", "no-classes", "empty-split"),
    "detected boxes that belong to other keyframes": ("proposals-unreadable", "proposals-elsewhere", "proposals-none"),
    "annotations that cannot be read": ("unreadable", "not-a-number", "line-columns", "video-missing"),
}
"""Usual causes of a validation mAP of 0, each with the findings that point to it."""

FEW_STEPS = 1000


def quick_check(datamodule: ActionDataModule) -> list[Finding]:
    """Check annotations and file names, without decoding videos; needs no `setup`.

    The annotations stay in `datamodule.scanned`, so that `setup` need not read them again.
    """
    try:
        datamodule.prepare_data()
        annotations = datamodule.scanned or datamodule.scan()
        found, _ = look_for_videos(annotations, sources(datamodule, annotations))
    except READ_ERRORS as error:
        return [unreadable(error)]
    datamodule.scanned = annotations
    return annotation_findings(annotations) + proposal_findings(datamodule, annotations) + found


def unreadable(error: Exception) -> Finding:
    return Finding("unreadable", "error", str(error))


def sources(datamodule: ActionDataModule, annotations: Annotations) -> dict[str, ReaderSource]:
    """Where to find the pixels of each split with annotations."""
    return {split: datamodule.source(split) for split in SPLITS if len(annotations.of(split))}


def look_for_videos(annotations: Annotations, opened: Mapping[str, ReaderSource]) -> tuple[list[Finding], set[str]]:
    """Findings about missing videos, and the names of these videos."""
    found, gone = [], set()
    for split, source in opened.items():
        videos = list(annotations.of(split)["video"].unique())
        found += missing_videos(split, videos, source)
        gone |= set(source.missing(videos))
    return found, gone


def explain_zero_map(findings: Sequence[Finding], detections: int, persons_found: int, steps: int | None = None) -> str:
    """List the usual causes of a validation mAP of 0 and the findings that point to each.

    Args:
        findings: Known findings about the data, see `ActionDataModule.findings`.
        persons_found: Number of annotated persons that the boxes overlap, regardless of the action.
        steps: Optimizer steps so far; None: not training.
    """
    lines, absent = [f"  what was found: {_symptom(detections, persons_found)}"], []
    for cause, kinds in ZERO_CAUSES.items():
        signs = [finding for finding in findings if finding.kind in kinds and finding.severity != "info"]
        lines += [f"  applies: {cause}: {finding}" for finding in signs]
        absent += [] if signs else [cause]
    if steps is not None and steps < FEW_STEPS:
        lines.append(f"  may apply: {steps} optimizer steps are few; without pretrained weights it takes thousands")
    lines += [f"  no sign of: {cause}" for cause in absent]
    lines.append("  not checked: x and y swapped, frames given as seconds; for these run python -m evad.data.check")
    return "mAP is 0. The usual causes:\n" + "\n".join(lines)


def _symptom(detections: int, persons_found: int) -> str:
    if not detections:
        return "no detections; is the person-score threshold above every score, or training too short?"
    if not persons_found:
        return (
            "no detected box overlaps an annotated person enough; are the annotated boxes x before y and fractions of "
            "the frame, and the timestamps those of the video?"
        )
    return f"{persons_found} persons, but none with the right action; do the action ids start at 1 as in the label map?"
