"""The DataModule of AVA."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from evad.data.annotations.ava import VALID_SECONDS, read_frame_lists, scan_ava
from evad.data.annotations.findings import require_sound
from evad.data.annotations.keyframes import SPLITS, Annotations, Split, make_keyframes
from evad.data.annotations.proposals import ProposalFiles
from evad.data.annotations.soundness import line_findings
from evad.data.clips.datamodule import ActionDataModule, Loading
from evad.data.clips.sampling import ClipSampler
from evad.data.video.readers import Backend
from evad.data.video.sources import FrameFolders, ReaderSource, VideoFiles
from evad.files.label_map import read_label_map
from evad.structures import Keyframe

if TYPE_CHECKING:
    from typing_extensions import Unpack

_NO_PROPOSALS = ProposalFiles()


class AVADataModule(ActionDataModule):
    """AVA v2.1 or v2.2, or any data in its layout.

    `root` holds `annotations/` and the frames or videos. The first of these that exists is read:

    - `frame_lists/{train,val}.csv`: image paths relative to `root/frames`;
    - `frames/<video>/`: images numbered `<video>_000001.jpg`, `img_00001.jpg`, ..., extracted at `annotated_fps`;
    - `videos/<video>.mp4` (or .mkv, .webm, .avi, .mov), at any frame rate.

    Args:
        sampler: Chooses the frames of a clip; its `annotated_fps` is the unit of keyframe positions.
        version: Replaces `{version}` in the names below.
        train_csv: Training annotations, in `root/annotations` like the other files; several files are read as one.
        excluded_csv: Validation frames to leave out; None keeps all.
        label_map: File with the ids and names of the evaluated classes; None: AVA's file for this version.
        num_classes: Number of outputs of the model, for action ids 1 to `num_classes`; None: the ids of the label map.
        video_start_second: The second at which files and frames begin: 900 for the 15-minute cuts, 0 for whole movies.
        valid_seconds: Annotations before the first or after the second of these seconds are left out; None keeps all.
        backend: Decoder of video files, see `evad.data.video.readers.open_video`.
        proposals: Boxes of an external detector, for `model/localization=external`; none by default.
        **loading: Arguments of `ActionDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        sampler: ClipSampler,
        version: Literal["2.1", "2.2"] = "2.2",
        train_csv: str | Sequence[str] = "ava_train_v{version}.csv",
        val_csv: str | Sequence[str] = "ava_val_v{version}.csv",
        excluded_csv: str | None = "ava_val_excluded_timestamps_v{version}.csv",
        label_map: str | None = None,
        num_classes: int | None = 80,
        video_start_second: float = 900.0,
        valid_seconds: tuple[float, float] | None = VALID_SECONDS,
        backend: Backend = "auto",
        proposals: ProposalFiles = _NO_PROPOSALS,
        **loading: Unpack[Loading],
    ) -> None:
        super().__init__(sampler, **loading)
        if version not in _LABEL_MAPS:
            raise ValueError(f"AVA version {version!r} is unknown; choose one of {', '.join(_LABEL_MAPS)}")
        if sampler.annotated_fps is None:
            raise ValueError("AVA positions are seconds; give the sampler annotated_fps (AVA: 30)")
        self.root = Path(root)
        self.version = version
        given: dict[Split, str | Sequence[str]] = {"train": train_csv, "val": val_csv}
        self.csv_names = {split: [names] if isinstance(names, str) else names for split, names in given.items()}
        self.excluded_csv = excluded_csv
        self.label_map = label_map or _LABEL_MAPS[version]
        self.num_outputs = num_classes
        self.video_start_second = video_start_second
        self.valid_seconds = valid_seconds
        self.backend: Backend = backend
        self.proposals = proposals
        self.annotated_fps = sampler.annotated_fps

    def count_classes(self) -> int:
        return self.num_outputs or len(read_label_map(self.annotation_file(self.label_map)))

    def scan(self, splits: Sequence[Split] = SPLITS) -> Annotations:
        """All annotations that the settings do not leave out, even with errors."""
        self.class_names = read_label_map(self.annotation_file(self.label_map))
        self.evaluated = sorted(self.class_names)
        self.class_ids = list(range(1, self.num_outputs + 1)) if self.num_outputs else self.evaluated
        self.num_classes = len(self.class_ids)
        beyond = sorted(set(self.evaluated) - set(self.class_ids))
        if beyond:
            raise ValueError(f"{self.label_map} has ids {beyond[:5]} beyond num_classes {self.num_outputs}; raise it")
        return scan_ava(
            {split: [self.annotation_file(name) for name in self.csv_names[split]] for split in splits},
            self.class_ids,
            self.class_names,
            first_second=self.video_start_second,
            annotated_fps=self.annotated_fps,
            valid_seconds=self.valid_seconds,
            excluded=self.annotation_file(self.excluded_csv) if self.excluded_csv and "val" in splits else None,
        )

    def keyframes(self, split: Split) -> list[Keyframe]:
        annotations = self.scanned or self.scan((split,))
        findings = line_findings(annotations)
        require_sound(findings)
        self.report(findings)
        keyframes = make_keyframes(annotations, split, None, self.class_ids)
        return self.proposals.attach(split, keyframes, self.annotation_file)

    def annotation_file(self, name: str) -> Path:
        """Path of a file in `annotations/`, with `{version}` replaced.

        Raises:
            FileNotFoundError: There is no such file.
        """
        path = self.root / "annotations" / name.format(version=self.version)
        if not path.is_file():
            raise FileNotFoundError(f"{path}: no such annotation file; check the data root and the file's name")
        return path

    def source(self, split: Split) -> ReaderSource:
        frames, videos = self.root / "frames", self.root / "videos"
        frame_list = self.root / "frame_lists" / f"{split}.csv"
        if frame_list.is_file():
            return FrameFolders(frames, self.annotated_fps, read_frame_lists(frame_list, frames))
        if frames.is_dir():
            return FrameFolders(frames, self.annotated_fps)
        if videos.is_dir():
            return VideoFiles(videos, self.backend)
        raise FileNotFoundError(f"{self.root}: neither frames/ nor videos/ in this folder; check the data root")


_LABEL_MAPS = {
    "2.1": "ava_action_list_v{version}_for_activitynet_2018.pbtxt",
    "2.2": "ava_action_list_v{version}_for_activitynet_2019.pbtxt",
}
