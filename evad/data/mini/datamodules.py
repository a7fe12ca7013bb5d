"""DataModules of the generated data sets, which are rendered on first use and read like the real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from evad.data.clips.ava import AVADataModule
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.tubes import TubeDataModule
from evad.data.mini.ava import ensure_mini, mini_folder
from evad.data.mini.tubes import ensure_mini_tubes, mini_tubes_folder


class MiniTubeDataModule(TubeDataModule):
    """Generated data in the layout of UCF101-24 or JHMDB, see `evad.data.mini.tubes`.

    Args:
        root: Parent folder; the data set is in a subfolder named after its parameters.
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
        super().__init__(mini_tubes_folder(root, layout, num_videos, generator_seed), sampler, num_classes, **settings)
        self.parameters = layout, num_videos, generator_seed

    def prepare_data(self) -> None:
        ensure_mini_tubes(self.root.parent, *self.parameters)


class MiniDataModule(AVADataModule):
    """Generated data in the layout of AVA, see `evad.data.mini.ava`.

    Args:
        root: Parent folder; the data set is in a subfolder named after its parameters.
        **settings: Arguments of `AVADataModule`.
    """

    def __init__(
        self,
        root: str | Path,
        sampler: ClipSampler,
        train_clips: int = 3000,
        val_clips: int = 200,
        generator_seed: int = 0,
        num_classes: int = 8,
        **settings: Any,
    ) -> None:
        super().__init__(
            mini_folder(root, train_clips, val_clips, generator_seed),
            sampler,
            train_csv="train.csv",
            val_csv="val.csv",
            excluded_csv=None,
            label_map="label_map.pbtxt",
            num_classes=num_classes,
            video_start_second=0.0,
            valid_seconds=None,
            **settings,
        )
        self.parameters = train_clips, val_clips, generator_seed

    def prepare_data(self) -> None:
        ensure_mini(self.root.parent, *self.parameters)
