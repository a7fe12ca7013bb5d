"""The DataModule of UCF101-24, JHMDB, MultiSports and other data annotated with tubes.

There is a training clip for every annotated frame of the training videos, and a validation clip for every frame of the
test videos: in published evaluations, detections in frames without annotation are false positives, and tubes are linked
from frame to frame. Results are therefore comparable only with `val_every_frame=True` and `val_stride=1`.
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
"""Names of the distributed annotation files, each with the list of test videos that it needs."""

PIXEL_FOLDERS = ("rgb-images", "Frames", "frames", "videos", "UCF-101", "ReCompress_Videos", "trainval")
"""Folders of frames or videos in the distributions; a video is `<class>/<video>` in them."""

NOMINAL_FPS = 25.0
"""Frame rate reported for frame folders; it has no effect, because the clips of tubes are chosen by frame number."""


class TubeDataModule(ActionDataModule):
    """Data annotated with tubes.

    Class ids are class numbers from 0, as in detection files. `root` holds one of the `ANNOTATION_FILES` and one of the
    `PIXEL_FOLDERS`, with frames (`<class>/<video>/00001.jpg` or `.png`) or video files (`<class>/<video>.avi`, .mp4,
    ...). If there are several, the first in these lists is used.

    Args:
        sampler: Chooses the frames of a clip; its `annotated_fps` must be None, as tubes are annotated by frame number.
        num_classes: Outputs of the model (UCF101-24: 24, JHMDB: 21, MultiSports: 66).
        split: Number of the split, from 1 (JHMDB has 3).
        annotations: Annotation file in `root`; None: look for one.
        test_list: Text file in `root` that lists the test videos, needed only with `pyannot.pkl`; None: the usual name.
        pixels: Folder of frames or videos in `root`; None: look for one.
        val_every_frame: Validate on all frames of the test videos. False validates only on annotated frames: this is
            faster, but scores are too high, because false positives in other frames are ignored.
        val_stride: Validate on every n-th frame of each video, starting with the first, to estimate frame-mAP faster.
            Video-mAP is reported only with 1, because tubes are linked from one frame to the next.
        min_score: Only class scores above this enter evaluation and detection files. A value above 0 saves memory if
            many queries are kept, at a small cost in AP.
        backend: Decoder of video files, see `evad.data.video.readers.open_video`.
        **loading: Arguments of `ActionDataModule`.

    Raises:
        ValueError: The sampler has `annotated_fps`, or `val_stride` is below 1.
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
            fps = f"annotated_fps is {sampler.annotated_fps:g}"
            raise ValueError(f"{fps}, but tubes are annotated by frame number; set it to null")
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
            ValueError: The file is malformed, or its number of classes is not `num_classes`.
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
        return self.num_classes

    def setup(self, stage: str) -> None:
        self.class_names = dict(enumerate(self.annotations.labels))
        self.class_ids = self.evaluated = list(self.class_names)
        super().setup(stage)

    def scan(self, splits: Sequence[Split] = SPLITS) -> Annotations:
        """The annotations of the keyframes, already checked by `read_tubes`; line numbers are not known."""
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
        """Frame folders if any of the split's videos is a folder, else video files."""
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
        """Metric of frame-mAP at IoU 0.5 and video-mAP on the validation keyframes.

        Raises:
            ValueError: `protocol` is not None; tubes have only one protocol.
        """
        if protocol is not None:
            raise ValueError(f"protocol {protocol!r} is for AVA; tubes have only one protocol: set protocol=null")
        kind = TubeMAP if self.val_stride == 1 else FrameOnlyTubeMAP
        return kind(self.val_dataset.keyframes, self.class_ids, min_score=self.min_score)

    def _annotation_files(self) -> tuple[Path, Path | None]:
        """The annotation file, and the list of test videos if it needs one."""
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
    """`TubeMAP` without video-mAP, for frames that are too far apart to be linked."""

    def scores(self, gathered: GatheredDetections) -> dict[str, Tensor]:
        every = super().scores(gathered)
        return {name: score for name, score in every.items() if not name.startswith("video_mAP")}
