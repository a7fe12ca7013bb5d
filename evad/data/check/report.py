"""The report of `evad.data.check`: on the terminal, as JSON, and as a picture of examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from evad.data.annotations.findings import SEVERITIES, Finding, by_severity, errors
from evad.drawing.frames import draw_detections
from evad.structures import Detections

_STYLES = {"error": "bold red", "warning": "yellow", "info": "cyan"}
_COLUMNS, _CELL = 4, 360  # pictures per line of the sheet, and their width in pixels


@dataclass(frozen=True)
class SplitSummary:
    videos: int
    keyframes: int
    boxes: int
    labels: int


@dataclass(frozen=True)
class ClassSummary:
    """Number of labelled boxes of a class."""

    id: int
    name: str
    train: int
    val: int


@dataclass(frozen=True)
class Report:
    """Result of a check."""

    data_set: str
    splits: dict[str, SplitSummary]
    classes: list[ClassSummary]
    findings: list[Finding]

    @property
    def sound(self) -> bool:
        return not errors(self.findings)

    def as_dict(self) -> dict[str, Any]:
        return {
            "data_set": self.data_set,
            "sound": self.sound,
            "counts": {severity: sum(f.severity == severity for f in self.findings) for severity in SEVERITIES},
            "splits": {name: vars(split) for name, split in self.splits.items()},
            "classes": [vars(summary) for summary in self.classes],
            "findings": [finding.as_dict() for finding in by_severity(self.findings)],
        }


def write_json(report: Report, path: Path) -> None:
    path.write_text(json.dumps(report.as_dict(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def print_report(report: Report, console: Console) -> None:
    """Print tables of splits and classes, then the findings; the worst come last, next to the prompt."""
    console.rule(f"[bold]{escape(report.data_set)}")
    console.print(_splits_table(report))
    if report.classes:
        console.print(_classes_table(report))
    for finding in reversed(by_severity(report.findings)):
        _print_finding(finding, console)
    wrong, warnings = len(errors(report.findings)), sum(f.severity == "warning" for f in report.findings)
    verdict = "[bold green]sound" if report.sound else "[bold red]training would be wrong"
    console.print(f"\n{verdict}[/]: {wrong} errors, {warnings} warnings")


def _splits_table(report: Report) -> Table:
    table = Table("split", *(column for column in SplitSummary.__dataclass_fields__), title="Size")
    for name, split in report.splits.items():
        table.add_row(name, *(f"{value:,}" for value in vars(split).values()))
    return table


def _classes_table(report: Report) -> Table:
    table = Table("id", "class", "train", "val", title="Labelled boxes per class")
    most = max([summary.train for summary in report.classes] + [1])
    for summary in report.classes:
        bar = "█" * max(round(20 * summary.train / most), int(summary.train > 0))
        table.add_row(str(summary.id), escape(summary.name), f"{summary.train:,} {bar}", f"{summary.val:,}")
    return table


def _print_finding(finding: Finding, console: Console) -> None:
    style = _STYLES[finding.severity]
    times = f" ({finding.count:,}x)" if finding.count > 1 else ""
    text = f"[{style}]{finding.severity} {finding.kind}[/]{times}: {escape(finding.message)}"
    console.print(text, soft_wrap=True, highlight=False)
    for example in finding.examples:
        console.print(f"    {escape(example)}", soft_wrap=True, highlight=False, style="dim")
    if finding.remedy:
        console.print(f"    -> {escape(finding.remedy)}", soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Example:
    """A keyframe in `examples.png`.

    Attributes:
        caption: Split, video and time.
        image: (H, W, 3) uint8 RGB.
        boxes: (n, 4) xyxy as fractions.
        texts: Actions of each box.
    """

    caption: str
    image: np.ndarray
    boxes: np.ndarray
    texts: list[str]


def draw_sheet(examples: Sequence[Example], path: Path) -> None:
    """Draw all examples with their boxes and labels into one picture."""
    cells = [_cell(example) for example in examples]
    lines = [cells[start : start + _COLUMNS] for start in range(0, len(cells), _COLUMNS)]
    heights = [max(cell.height for cell in line) for line in lines]
    width = _CELL * min(_COLUMNS, len(cells))
    sheet = Image.new("RGB", (width, sum(heights)), "white")
    for number, line in enumerate(lines):
        for column, cell in enumerate(line):
            sheet.paste(cell, (column * _CELL, sum(heights[:number])))
    sheet.save(path)


def _cell(example: Example) -> Image.Image:
    """Draw a keyframe with its boxes, `_CELL` pixels wide, below its caption."""
    height, width = example.image.shape[:2]
    scale = (_CELL - 8) / width
    size = (_CELL - 8, max(round(height * scale), 1))
    image = np.asarray(Image.fromarray(example.image).resize(size, Image.Resampling.BICUBIC))
    boxes = example.boxes * np.tile(np.array(size, dtype=np.float64), 2)
    # Order the corners and clip them to the picture, so that boxes in a wrong unit or order can be drawn.
    corners = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    limits = np.tile(np.array(size) - 1, 2)
    truth = list(zip(corners.clip(0, limits).tolist(), example.texts))
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 0), torch.tensor(size[::-1]))
    drawn = draw_detections(image, none, [], truth=truth)
    cell = Image.new("RGB", (_CELL, size[1] + 24), "white")
    ImageDraw.Draw(cell).text((4, 4), example.caption, fill="black", font=ImageFont.load_default(size=12))
    cell.paste(Image.fromarray(drawn), (4, 20))
    return cell
