"""UCF101-24, JHMDB, MultiSports and other data annotated with tubes, as DataModule.

Training clips are the annotated frames of the training videos. Validation clips are all frames of the test videos,
annotated or not: the evaluation programs count what is detected in any of them, and tubes are linked from frame to
frame. So numbers are comparable with published ones only with `val_every_frame=True` and `val_stride=1`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pandas as pd
from torch import Tensor

from evad.data.annotations.keyframes import SPLITS, Annotations, Clock, Split, keyframe_rows
from evad.data.annotations.tubes import tube_keyframes
from evad.data.clips.datamodule import ActionDataModule, Loading
from evad.data.clips.sampling import ClipSampler
from evad.data.video.readers import Backend
from evad.data.video.sources import FrameFolders, ReaderSource, VideoFiles
from evad.files.tube_packages import TubeAnnotations
from evad.files.tubes import read_tubes
from evad.metrics.keyframes import GatheredDetections
from evad.metrics.tube_map import TubeMAP
from evad.structures import Keyframe

if TYPE_CHECKING:
    from typing_extensions import Unpack

ANNOTATION_FILES = (
    ("UCF101v2-GT.pkl", None),
    ("JHMDB-GT.pkl", None),
    ("multisports_GT.pkl", None),
    ("pyannot.pkl", "testlist01.txt"),
    ("splitfiles/pyannot.pkl", "splitfiles/testlist01.txt"),
)
"""Annotations by the names they are distributed under, each with the list of test videos that it needs."""

PIXEL_FOLDERS = ("rgb-images", "Frames", "frames", "videos", "UCF-101", "ReCompress_Videos", "trainval")
"""Where the distributions have frames or videos, each as `<class>/<video>`."""

NOMINAL_FPS = 25.0
"""Rate given to frame folders. Nothing depends on it: clips count frames."""


class TubeDataModule(ActionDataModule):
    """Data annotated with tubes.

    Class ids are class numbers from 0, as in detection files. `root` holds annotations under one of the names of
    `ANNOTATION_FILES` and pixels in one of the `PIXEL_FOLDERS`, as frames (`<class>/<video>/00001.jpg` or `.png`) or as
    video files (`<class>/<video>.avi`, .mp4, ...); where several are there, the first listed counts.

    Args:
        root: Folder of the data set.
        sampler: Chooses the frames of a clip; its `annotated_fps` must be None, as tubes count frames.
        num_classes: Outputs of the model (UCF101-24: 24, JHMDB: 21, MultiSports: 66).
        split: Number of the split, from 1 (JHMDB has 3).
        annotations: Annotation file in `root`; None finds it.
        test_list: Text file of the test videos in `root`, which only `pyannot.pkl` needs; None: the one found with it.
        pixels: Folder of frames or videos in `root`; None finds it.
        val_every_frame: Validate on all frames of the test videos; False: on annotated frames only, which is quicker
            and gives too high scores, as false positives in the other frames are not counted.
        val_stride: Validate on every n-th frame of each video, from the first: an estimate of frame-mAP in an n-th of
            the time. There is no video-mAP then, because tubes grow from one frame to the next.
        min_score: Class scores up to this are left out of evaluation and detection files; above 0 saves memory where
            many queries are kept, at a small cost in AP.
        backend: Decoder of video files, see `evad.data.video.readers.open_video`.
        **loading: Arguments of `ActionDataModule`.

    Raises:
        ValueError: The sampler has a clock of its own, or `val_stride` is below 1.
    """

    def __init__(
        self,
        root: str | Path,
        sampler: ClipSampler,
        num_classes: int,
        split: int = 1,
        annotations: str | None = None,
        test_list: str | None = None,
        pixels: str | None = None,
        val_every_frame: bool = True,
        val_stride: int = 1,
        min_score: float = 0.0,
        backend: Backend = "auto",
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(sampler, **loading)
        if sampler.annotated_fps is not None:
            raise ValueError(
                f"annotated_fps is {sampler.annotated_fps:g}, but tubes count frames of the video; set it to null"
            )
        if val_stride < 1:
            raise ValueError(f"val_stride is {val_stride}; it must be 1 (every frame) or more")
        self.root = Path(root)
        self.num_classes = num_classes
        self.split = split
        self.files = (annotations, test_list)
        self.pixels = pixels
        self.val_every_frame = val_every_frame
        self.val_stride = val_stride
        self.min_score = min_score
        self.backend: Backend = backend
        self._annotations: TubeAnnotations | None = None

    @property
    def annotations(self) -> TubeAnnotations:
        """Tubes of all videos, read at first use.

        Raises:
            FileNotFoundError: There is no annotation file.
            ValueError: It is malformed, or has another number of classes than `num_classes`.
        """
        if self._annotations is None:
            path, test_list = self._annotation_files()
            annotations = read_tubes(path, test_list)
            if len(annotations.labels) != self.num_classes:
                raise ValueError(
                    f"{path} names {len(annotations.labels)} classes, but num_classes is {self.num_classes}; "
                    f"set data.num_classes={len(annotations.labels)}"
                )
            self._annotations = annotations
        return self._annotations

    def count_classes(self) -> int:
        """`num_classes`."""
        return self.num_classes

    def setup(self, stage: str) -> None:
        """Read the annotations and check what `ActionDataModule.setup` checks."""
        self.class_names = dict(enumerate(self.annotations.labels))
        self.class_ids = self.evaluated = list(self.class_names)
        super().setup(stage)

    def scan(self, splits: Sequence[Split] = SPLITS) -> Annotations:
        """The annotations of the keyframes, which the reader of tubes has checked; their lines are not known."""
        self.setup("fit" if "train" in splits else "validate")
        parts = [keyframe_rows(self._dataset(split).keyframes, self.class_ids).assign(split=split) for split in splits]
        return Annotations(
            rows=pd.concat(parts, ignore_index=True),
            classes=self.class_names,
            evaluated=self.evaluated,
            boxes="fractions",
            clock=Clock("frames"),
            given_classes=True,
            overhang="warning",
            findings=[],
        )

    def keyframes(self, split: Split) -> list[Keyframe]:
        subset: Literal["train", "test"] = "train" if split == "train" else "test"
        every_frame = split == "val" and self.val_every_frame
        found = tube_keyframes(self.annotations, self.split, subset, every_frame)
        if split == "val":
            found = [keyframe for keyframe in found if keyframe.position % self.val_stride == 0]
        if not found:
            raise ValueError(f"{self.root}: split {self.split} has no {subset} frames; check the annotation file")
        return found

    def source(self, split: Split) -> ReaderSource:
        """Frames if any of the split's videos is a folder, else video files."""
        names = [self.pixels] if self.pixels else PIXEL_FOLDERS
        folder = next((self.root / name for name in names if (self.root / name).is_dir()), None)
        if folder is None:
            raise FileNotFoundError(
                f"{self.root}: no folder of frames or videos ({', '.join(names)}); check the data root, or name the "
                f"folder with data.pixels"
            )
        videos = self.annotations.videos(self.split, "train" if split == "train" else "test")
        if any((folder / video).is_dir() for video in videos):
            return FrameFolders(folder, NOMINAL_FPS)
        return VideoFiles(folder, self.backend)

    def build_metric(self, protocol: str | None = None) -> TubeMAP:
        """Frame-mAP at IoU 0.5 and video-mAP on the validation keyframes.

        Args:
            protocol: None, as all published numbers follow one protocol.

        Raises:
            ValueError: A protocol was asked for.
        """
        if protocol is not None:
            raise ValueError(f"protocol {protocol!r} belongs to AVA; tubes have one evaluation: set protocol=null")
        kind = TubeMAP if self.val_stride == 1 else FrameOnlyTubeMAP
        return kind(self.val_dataset.keyframes, self.class_ids, min_score=self.min_score)

    def _annotation_files(self) -> tuple[Path, Path | None]:
        """The annotation file and, where it needs one, the list of test videos."""
        given, given_list = self.files
        names = [(given, None)] if given else ANNOTATION_FILES
        for name, list_name in names:
            path = self.root / name
            if path.is_file():
                test_list = given_list or list_name
                return path, None if test_list is None else self.root / test_list
        wanted = ", ".join(str(name) for name, _ in names)
        raise FileNotFoundError(
            f"{self.root}: no tube annotations in this folder ({wanted}); check the data root, or name the file with "
            f"data.annotations"
        )


class FrameOnlyTubeMAP(TubeMAP):
    """`TubeMAP` without video-mAP, for frames too far apart to be linked."""

    def scores(self, gathered: GatheredDetections) -> dict[str, Tensor]:
        """The scores of `TubeMAP` that single frames have."""
        every = super().scores(gathered)
        return {name: score for name, score in every.items() if not name.startswith("video_mAP")}
