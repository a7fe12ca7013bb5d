"""The base class of all data modules, and their loaders."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypedDict

from lightning import LightningDataModule
from lightning.pytorch.utilities import rank_zero_only
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import Metric

from evad.data.annotations.findings import Finding, require_sound
from evad.data.annotations.keyframes import SPLITS, Annotations, Split
from evad.data.annotations.videos import missing_videos
from evad.data.clips.collate import PaddingCollate
from evad.data.clips.dataset import ActionDataset
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.data.video.sources import ReaderSource
from evad.metrics.frame_map import AVAFrameMAP
from evad.structures import Batch, Clip, Keyframe

logger = logging.getLogger(__name__)

_PAPER_TRAINING = VideoTransform(short_side=288, flip=0.5)
_PAPER_VALIDATION = VideoTransform(short_side=288)


class Loading(TypedDict, total=False):
    """Arguments that every data module passes on to `ActionDataModule`, which describes them."""

    train_transform: VideoTransform
    val_transform: VideoTransform
    batch_size: int
    num_workers: int
    pin_memory: bool
    pad_multiple: int
    open_videos: int
    seed: int


class EpochSampler(DistributedSampler[Clip]):
    """Shuffles by (seed, epoch), splits over the ranks, and tells the data set the epoch for its augmentation.

    Lightning calls `set_epoch` before every epoch, even in a single process.
    """

    dataset: ActionDataset

    def set_epoch(self, epoch: int) -> None:
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)


class ActionDataModule(LightningDataModule, ABC):
    """Training and validation loaders of one data set; subclasses provide the keyframes and the videos.

    `setup("fit")` makes `train_dataset` and `val_dataset`; any other stage makes only `val_dataset`.

    Args:
        train_transform: Resizes and augments training clips; by default as in the paper.
        val_transform: Resizes validation clips.
        batch_size: Clips per batch and process.
        num_workers: Reading processes per loader; 0 reads in the main process.
        pin_memory: Copy batches to page-locked memory (for GPUs).
        pad_multiple: Batches are padded to a multiple of this many pixels.
        open_videos: Videos that each reading process keeps open.
        seed: Seed of shuffling and augmentation.

    Attributes:
        num_classes: Outputs of the model; set by `setup`, like the next three.
        class_ids: Class id of each output.
        class_names: Names of the classes by id.
        evaluated: Ids of the evaluated classes.
        findings: Findings about the data reported so far (on rank 0).
        scanned: Annotations read before `setup`, so that `setup` need not read the files again.
    """

    num_classes: int
    class_ids: list[int]
    class_names: dict[int, str]
    evaluated: list[int]

    def __init__(
        self,
        sampler: ClipSampler,
        train_transform: VideoTransform = _PAPER_TRAINING,
        val_transform: VideoTransform = _PAPER_VALIDATION,
        batch_size: int = 8,
        num_workers: int = 2,
        pin_memory: bool = False,
        pad_multiple: int = 32,
        open_videos: int = 8,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.transforms: dict[Split, VideoTransform] = {"train": train_transform, "val": val_transform}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.collate = PaddingCollate(pad_multiple)
        self.open_videos = open_videos
        self.seed = seed
        self.findings: list[Finding] = []
        self.scanned: Annotations | None = None
        self._datasets: dict[Split, ActionDataset] = {}

    @abstractmethod
    def count_classes(self) -> int:
        """Number of classes, from the settings or read from the data set; needs no `setup`."""

    @abstractmethod
    def scan(self, splits: Sequence[Split] = SPLITS) -> Annotations:
        """All annotations, even with errors.

        Raises:
            ValueError, OSError: A file cannot be read at all.
        """

    @abstractmethod
    def keyframes(self, split: Split) -> list[Keyframe]:
        """Keyframes of a split.

        Raises:
            ValueError: The annotations have errors.
        """

    @abstractmethod
    def source(self, split: Split) -> ReaderSource:
        """The videos of a split: frame lists, frame folders or video files."""

    def build_metric(self, protocol: Any = "activitynet_2018") -> Metric:
        """Metric of frame-mAP at IoU 0.5 on the validation keyframes; see `evad.metrics.ava` for the protocols."""
        return AVAFrameMAP(self.val_dataset.keyframes, self.class_ids, evaluated=self.evaluated, protocol=protocol)

    @property
    def train_dataset(self) -> ActionDataset:
        """The training set; available after `setup("fit")`."""
        return self._dataset("train")

    @property
    def val_dataset(self) -> ActionDataset:
        """The validation set; available after `setup`."""
        return self._dataset("val")

    def _dataset(self, split: Split) -> ActionDataset:
        if split not in self._datasets:
            raise RuntimeError(f"the {split} set is not available yet; call setup('fit') or setup('validate') first")
        return self._datasets[split]

    @staticmethod
    def splits_of(stage: str) -> tuple[Split, ...]:
        return SPLITS if stage == "fit" else ("val",)

    def setup(self, stage: str) -> None:
        """Read the annotations of the stage and check that every video exists."""
        for split in self.splits_of(stage):
            if split in self._datasets:
                continue
            keyframes, source = self.keyframes(split), self.source(split)
            if not keyframes:
                raise ValueError(f"the {split} split has no keyframes; check the annotations and the settings")
            videos = list(dict.fromkeys(keyframe.video for keyframe in keyframes))
            require_sound(missing_videos(split, videos, source))
            people = sum(len(keyframe.boxes) for keyframe in keyframes)
            logger.info("%s: %d keyframes of %d videos, %d boxes", split, len(keyframes), len(videos), people)
            self._datasets[split] = ActionDataset(
                keyframes, source, self.sampler, self.transforms[split], self.seed, self.open_videos
            )
        self.scanned = None

    @rank_zero_only
    def report(self, findings: Sequence[Finding]) -> None:
        """Log findings, each only once, and keep them."""
        for finding in findings:
            if finding not in self.findings:
                logger.log(logging.INFO if finding.severity == "info" else logging.WARNING, "%s", finding)
                self.findings.append(finding)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; without a Trainer, call `loader.sampler.set_epoch(epoch)` before each epoch."""
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        order = EpochSampler(self.train_dataset, num_replicas=ranks, rank=rank, shuffle=True, seed=self.seed)
        # A resumed Trainer starts the workers before it first calls set_epoch.
        order.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        return self._loader(self.train_dataset, sampler=order)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader(self.val_dataset)

    def _loader(self, dataset: ActionDataset, sampler: EpochSampler | None = None) -> DataLoader[Batch]:
        return DataLoader(
            dataset,  # type: ignore[arg-type]  # collate turns Clips into a Batch
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
            collate_fn=self.collate,
        )
