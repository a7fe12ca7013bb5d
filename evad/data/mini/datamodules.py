"""The generated data sets as DataModules: rendered on first use, then read like the originals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evad.data.clips.ava import AVADataModule
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.tubes import TubeDataModule
from evad.data.mini.ava import ensure_mini
from evad.data.mini.tubes import ensure_mini_tubes


class MiniTubeDataModule(TubeDataModule):
    """Generated data in the layout of UCF101-24 or JHMDB, see `evad.data.mini.tubes`; rendered on first use.

    Args:
        root: Where the data set lives or is generated.
        sampler: Chooses the frames of a clip.
        layout: `ucf24` or `jhmdb`.
        num_videos: In all splits together.
        generator_seed: Seed of the rendering.
        num_classes: Outputs of the model.
        **settings: Arguments of `TubeDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        sampler: ClipSampler,
        layout: str,
        num_videos: int = 420,
        generator_seed: int = 0,
        num_classes: int = 7,
        **settings: Any,
    ) -> None:
        super().__init__(root, sampler, num_classes, **settings)
        self.layout, self.num_videos, self.generator_seed = layout, num_videos, generator_seed

    def prepare_data(self) -> None:
        """Render the videos unless they are there."""
        ensure_mini_tubes(self.root, self.layout, self.num_videos, self.generator_seed)


class MiniDataModule(AVADataModule):
    """Generated data in AVA layout, see `evad.data.mini`.

    Args:
        root: Where the data set lives or is generated.
        sampler: Chooses the frames of a clip.
        train_clips: Training videos.
        val_clips: Validation videos.
        generator_seed: Seed of the rendering.
        num_classes: Outputs of the model.
        **loading: Arguments of `ActionDataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        sampler: ClipSampler,
        train_clips: int = 3000,
        val_clips: int = 200,
        generator_seed: int = 0,
        num_classes: int = 8,
        **loading: Any,
    ) -> None:
        super().__init__(
            root,
            sampler,
            train_csv="train.csv",
            val_csv="val.csv",
            excluded_csv=None,
            label_map="label_map.pbtxt",
            num_classes=num_classes,
            video_start_second=0.0,
            valid_seconds=None,
            **loading,
        )
        self.train_clips, self.val_clips, self.generator_seed = train_clips, val_clips, generator_seed

    def prepare_data(self) -> None:
        """Render the videos unless they are there."""
        ensure_mini(self.root, self.train_clips, self.val_clips, self.generator_seed)
