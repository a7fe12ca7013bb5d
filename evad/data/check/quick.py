"""The part of `evad.data.check` that needs no frames: before training, and when a validation finds nothing."""

from __future__ import annotations

from collections.abc import Mapping

from evad.data.annotations.findings import Finding
from evad.data.annotations.keyframes import Annotations
from evad.data.annotations.soundness import annotation_findings
from evad.data.annotations.videos import missing_videos
from evad.data.check.proposals import proposal_findings
from evad.data.check.scan import scan, sources
from evad.data.clips.datamodule import ActionDataModule, ReaderSource

ZERO_CAUSES: dict[str, tuple[str, ...]] = {
    "labels are no classes, or count from 0 instead of 1": ("labels-from-0", "labels-from-1", "unknown-label"),
    "boxes are pixels instead of fractions or the reverse": (
        "pixels-as-fractions",
        "fractions-as-pixels",
        "box-outside",
        "box-overhang",
    ),
    "corners are in another order than x1, y1, x2, y2": ("box-column-order", "box-width-height", "box-inverted"),
    "times count otherwise": ("time-before-start", "frame-not-whole", "seconds-left-out"),
    "classes have no training examples": ("class-empty-train", "no-classes", "empty-split"),
    "detected boxes are not those of the keyframes": ("proposals-unreadable", "proposals-elsewhere", "proposals-none"),
    "the annotations cannot be read": ("unreadable", "not-a-number", "line-columns", "video-missing"),
}
"""Usual causes of a validation mAP of 0, each with the findings that speak for it."""

FEW_STEPS = 1000


def quick_check(datamodule: ActionDataModule) -> list[Finding]:
    """What is wrong with a data set as far as annotations and file names tell; decodes nothing.

    Args:
        datamodule: Any data module of this package; `setup` need not have been called.
    """
    try:
        datamodule.prepare_data()
        annotations = scan(datamodule)
        found, _ = look_for_videos(annotations, sources(datamodule, annotations))
    except (ValueError, OSError) as error:
        return [unreadable(error)]
    return annotation_findings(annotations) + proposal_findings(datamodule, annotations) + found


def unreadable(error: Exception) -> Finding:
    """The finding about annotations that cannot be read at all."""
    return Finding("unreadable", "error", str(error))


def look_for_videos(annotations: Annotations, opened: Mapping[str, ReaderSource]) -> tuple[list[Finding], set[str]]:
    """Findings about annotated videos that are not there, and the names of those."""
    found, gone = [], set()
    for split, source in opened.items():
        missing = source.missing(list(annotations.of(split)["video"].unique()))
        found += missing_videos(split, missing, source.root)
        gone |= set(missing)
    return found, gone


def explain_zero_map(datamodule: ActionDataModule, steps: int) -> str:
    """Which usual causes of a validation mAP of 0 apply, to log beside it.

    Args:
        datamodule: The run's data.
        steps: Optimizer steps so far.
    """
    findings = [finding for finding in quick_check(datamodule) if finding.severity != "info"]
    lines, absent = [], []
    for cause, kinds in ZERO_CAUSES.items():
        speaking = [finding for finding in findings if finding.kind in kinds]
        lines += [f"  applies: {cause}: {finding}" for finding in speaking]
        absent += [] if speaking else [cause]
    if steps < FEW_STEPS:
        lines.append(f"  may apply: {steps} optimizer steps are few; without pretrained weights it takes thousands")
    lines += [f"  no sign: {cause}" for cause in absent]
    lines.append("  only pictures tell: x and y swapped, frames given as seconds; run python -m evad.data.check")
    return "mAP is 0. The usual causes:\n" + "\n".join(lines)
