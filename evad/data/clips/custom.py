"""The DataModule of your own videos, for any folder of videos or frames with a table of annotations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from evad.data.annotations.classes import derive_classes, find_class_ids, find_label_file
from evad.data.annotations.findings import Finding, require_sound
from evad.data.annotations.keyframes import SPLITS, Annotations, BoxUnit, Clock, Split, join_tables, make_keyframes
from evad.data.annotations.soundness import annotation_findings
from evad.data.annotations.table import read_table
from evad.data.annotations.videos import missing_videos, probe, video_findings
from evad.data.clips.datamodule import ActionDataModule, Loading
from evad.data.clips.sampling import ClipSampler
from evad.data.video.readers import Backend
from evad.data.video.sources import FrameFolders, ReaderSource, VideoFiles
from evad.files.label_map import read_label_map
from evad.structures import Keyframe

if TYPE_CHECKING:
    from typing_extensions import Unpack


class CustomDataModule(ActionDataModule):
    """Your own data, from these files in `root`.

    - one table of annotations, which is divided by its `split` column or by `val_fraction`, or two tables, for training
      and validation; see `evad.data.annotations.table` for the layouts;
    - a label file, see `evad.data.annotations.classes.find_label_file`; without it, the annotated labels are the
      classes;
    - `videos/<video>.mp4` (or .mkv, .webm, .avi, .mov) at any frame rate, or `frames/<video>/` with images extracted at
      `frames_per_second`.

    `setup` raises the errors that `evad.data.check` reports without reading frames.

    Args:
        sampler: Chooses the frames of a clip; its `annotated_fps` is the unit of its stride.
        boxes: Whether boxes are in pixels of the video or fractions of its width and height.
        annotations: Table of all annotations, or of the training annotations; below `root`.
        val_annotations: Table of the validation annotations, if they have a separate table; below `root`.
        labels: Label file in the folder of the annotations; None: look for one.
        first_time: Value of the time (or frame) column at a video's first frame: 0, 1, or 900 for AVA's cuts.
        val_fraction: Share of the videos drawn for validation, if neither a column nor a second table gives the splits.
        num_classes: Outputs of the model, which must be the number of classes found; None: accept any number.
        frames_per_second: Rate of extracted frames.
        frame_pattern: Path of a video's images below `root/frames`, such as `{video}/img_%05d.jpg`; None: the images of
            folder `{video}` in the order of the numbers in their names.
        backend: Decoder of video files, see `evad.data.video.readers.open_video`.
        **loading: Arguments of `ActionDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        sampler: ClipSampler,
        boxes: BoxUnit,
        annotations: str = "annotations.csv",
        val_annotations: str | None = None,
        labels: str | None = None,
        first_time: float = 0.0,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        num_classes: int | None = None,
        frames_per_second: float = 30.0,
        frame_pattern: str | None = None,
        backend: Backend = "auto",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(sampler, **loading)
        if boxes not in ("pixels", "fractions"):
            raise ValueError(f"data.boxes is {boxes!r}; choose pixels or fractions")
        self.root = Path(root)
        self.boxes: BoxUnit = boxes
        self.tables = [name for name in (annotations, val_annotations) if name is not None]
        self.labels = labels
        self.first_time = first_time
        self.val_fraction = val_fraction
        self.split_seed = split_seed
        self.num_outputs = num_classes
        self.frames_per_second = frames_per_second
        self.frame_pattern = frame_pattern
        self.backend: Backend = backend
        self._keyframes: dict[Split, list[Keyframe]] = {}

    def count_classes(self) -> int:
        if self.num_outputs is not None:
            return self.num_outputs
        self.scanned = self.scanned or self.scan()
        return len(self.scanned.classes)

    def scan(self, splits: Sequence[Split] = SPLITS) -> Annotations:
        """All annotations, even with errors; always of both splits."""
        tables = [read_table(self.root / name) for name in self.tables]
        rows = join_tables(tables[0], tables[1] if len(tables) > 1 else None, self.val_fraction, self.split_seed)
        label_file = find_label_file((self.root / self.tables[0]).parent, self.labels)
        classes = derive_classes(rows["label"]) if label_file is None else read_label_map(label_file)
        return Annotations(
            rows=rows.assign(class_id=find_class_ids(rows["label"], classes)),
            classes=classes,
            evaluated=list(classes),
            boxes=self.boxes,
            clock=Clock(tables[0].unit, self.first_time, self.sampler.annotated_fps),
            given_classes=label_file is not None,
            overhang="warning",
            findings=[finding for table in tables for finding in table.findings]
            + self._class_findings(classes, label_file),
        )

    def _class_findings(self, classes: Mapping[int, str], label_file: Path | None) -> list[Finding]:
        where = "the annotated labels" if label_file is None else str(label_file)
        found = [Finding("classes", "info", f"{len(classes)} classes, from {where}")]
        if self.num_outputs is not None and self.num_outputs != len(classes):
            message = f"num_classes is {self.num_outputs}, but there are {len(classes)} classes in {where}"
            remedy = f"set data.num_classes={len(classes)}; for a trained model, use the label list it was trained with"
            found.append(Finding("num-classes", "error", message, remedy))
        return found

    def setup(self, stage: str) -> None:
        """Read annotations and labels, open every video once, and check that they fit together."""
        if splits := [split for split in self.splits_of(stage) if split not in self._keyframes]:
            self._read(splits)
        super().setup(stage)

    def _read(self, splits: Sequence[Split]) -> None:
        annotations = self.scanned or self.scan()
        findings = annotation_findings(annotations)
        require_sound(findings)
        self.class_names = annotations.classes
        self.class_ids = self.evaluated = list(annotations.classes)
        self.num_classes = len(self.class_ids)
        source = self.source("train")
        videos = list(annotations.rows.loc[annotations.rows["split"].isin(splits), "video"].unique())
        require_sound(missing_videos("annotated", videos, source))
        infos, unreadable = probe(source, videos)
        findings += unreadable + video_findings(annotations, infos)
        require_sound(findings)
        self.report(findings)
        for split in splits:
            self._keyframes[split] = make_keyframes(annotations, split, infos, self.class_ids)

    def keyframes(self, split: Split) -> list[Keyframe]:
        return self._keyframes[split]

    def source(self, split: Split) -> ReaderSource:
        videos, frames = self.root / "videos", self.root / "frames"
        if videos.is_dir():
            return VideoFiles(videos, self.backend)
        if frames.is_dir():
            return FrameFolders(frames, self.frames_per_second, pattern=self.frame_pattern)
        raise FileNotFoundError(f"{self.root}: neither videos/ nor frames/ in this folder; check data.root")
