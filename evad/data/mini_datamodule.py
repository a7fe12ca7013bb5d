"""The generated default data set as a DataModule: rendered on first use, then read like AVA."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evad.data.clip_sampling import ClipSampler
from evad.data.datamodule import AVADataModule
from evad.data.mini import ensure_mini


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
