"""DataModules: which keyframes and which pixels make the training and the validation set."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, Protocol

from lightning import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler
from torchmetrics import Metric

from evad.data.clips.collate import PaddingCollate
from evad.data.clips.dataset import ActionDataset
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.data.video.errors import VideoReader
from evad.structures import Batch, Clip, Keyframe

Split = Literal["train", "val"]

_PAPER_TRAINING = VideoTransform(short_side=288, flip=0.5)

_PAPER_VALIDATION = VideoTransform(short_side=288)


class ReaderSource(Protocol):
    """Opens videos by name and knows which it has: `VideoFiles`, `FrameFolders`."""

    root: Path

    def __call__(self, video: str) -> VideoReader:
        """Reader of `video`."""
        ...

    def missing(self, videos: Sequence[str]) -> list[str]:
        """Those of `videos` that it cannot open because they are not there."""
        ...


class EpochSampler(DistributedSampler[Clip]):
    """Shuffles by (seed, epoch), splits over the ranks, and tells the data set which epoch its augmentation is for.

    Lightning calls `set_epoch` before every epoch, with one process too.
    """

    dataset: ActionDataset

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of an epoch."""
        super().set_epoch(epoch)
        self.dataset.set_epoch(epoch)


class ActionDataModule(LightningDataModule, ABC):
    """Training and validation loaders of one data set; subclasses say where keyframes and pixels come from.

    After `setup("fit")` or `setup("validate")` there are `train_dataset` and `val_dataset` (only the latter after
    `validate`).

    Args:
        sampler: Chooses the frames of a clip.
        train_transform: Resizes and augments training clips; by default the paper's.
        val_transform: Resizes validation clips.
        batch_size: Clips per batch and process.
        num_workers: Processes that read clips, per loader; 0 reads in the main process.
        pin_memory: Copy batches to page-locked memory (for GPUs).
        pad_multiple: Batches are padded to a multiple of this many pixels.
        seed: Seed of shuffling and augmentation.
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
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.sampler = sampler
        self.transforms: dict[Split, VideoTransform] = {"train": train_transform, "val": val_transform}
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self.collate = PaddingCollate(pad_multiple)
        self.seed = seed
        self._datasets: dict[Split, ActionDataset] = {}

    @abstractmethod
    def read_split(self, split: Split) -> tuple[list[Keyframe], ReaderSource]:
        """Keyframes of a split and where their pixels are."""

    @abstractmethod
    def build_metric(self, protocol: str) -> Metric:
        """The data set's evaluation on its validation keyframes."""

    @property
    def train_dataset(self) -> ActionDataset:
        """The training set, there after `setup("fit")`."""
        return self._dataset("train")

    @property
    def val_dataset(self) -> ActionDataset:
        """The validation set, there after `setup("fit")` and `setup("validate")`."""
        return self._dataset("val")

    def _dataset(self, split: Split) -> ActionDataset:
        if split not in self._datasets:
            raise RuntimeError(f"the {split} set is not there yet; call setup('fit') or setup('validate') first")
        return self._datasets[split]

    def setup(self, stage: str) -> None:
        """Read annotations and check that every video is there; `fit` needs both sets, everything else validation."""
        splits: tuple[Split, ...] = ("train", "val") if stage == "fit" else ("val",)
        for split in splits:
            if split not in self._datasets:
                keyframes, source = self.read_split(split)
                _check_videos(split, keyframes, source)
                transform = self.transforms[split]
                self._datasets[split] = ActionDataset(keyframes, source, self.sampler, transform, self.seed)

    def train_dataloader(self) -> DataLoader[Batch]:
        """Shuffled batches; without a Trainer, call `loader.sampler.set_epoch(epoch)` before each epoch."""
        ranks, rank = (self.trainer.world_size, self.trainer.global_rank) if self.trainer else (1, 0)
        order = EpochSampler(self.train_dataset, num_replicas=ranks, rank=rank, shuffle=True, seed=self.seed)
        # A resumed Trainer starts the workers before it first calls set_epoch.
        order.set_epoch(self.trainer.current_epoch if self.trainer else 0)
        return self._loader(self.train_dataset, sampler=order)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Batches in the order of the keyframes."""
        return self._loader(self.val_dataset)

    def _loader(self, dataset: ActionDataset, sampler: EpochSampler | None = None) -> DataLoader[Batch]:
        return DataLoader(
            dataset,  # type: ignore[arg-type]  # collate makes Batches of its Clips
            batch_size=self.batch_size,
            sampler=sampler,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            pin_memory=self.pin_memory,
            collate_fn=self.collate,
        )


def _check_videos(split: Split, keyframes: Sequence[Keyframe], source: ReaderSource) -> None:
    videos = list(dict.fromkeys(keyframe.video for keyframe in keyframes))
    missing = source.missing(videos)
    if missing:
        names = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise FileNotFoundError(
            f"{len(missing)} of {len(videos)} {split} videos are not in {source.root}: {names}; "
            f"add them, or remove their lines from the annotations"
        )
