"""The data set behind all data modules: reads the clip of each keyframe."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.data.video.errors import VideoReader
from evad.data.video.sources import ReaderCache
from evad.structures import Clip, Keyframe, Proposals, Target


class ActionDataset(Dataset[Clip]):
    """One clip per keyframe.

    Augmentation depends only on (seed, epoch, index): it changes from epoch to epoch, is the same for any number of
    workers or ranks, and repeats when a run is resumed. The epoch is in shared memory, so that `set_epoch` in the main
    process also reaches persistent workers.

    Args:
        keyframes: Keyframe i is the centre of clip i.
        open_reader: Opens a video by name; must be picklable, as every reading process calls it.
        open_videos: Videos that each reading process keeps open.
    """

    def __init__(
        self,
        keyframes: Sequence[Keyframe],
        open_reader: Callable[[str], VideoReader],
        sampler: ClipSampler,
        transform: VideoTransform,
        seed: int = 0,
        open_videos: int = 8,
    ) -> None:
        self.keyframes = keyframes
        self.sampler = sampler
        self.transform = transform
        self.seed = seed
        self._readers = ReaderCache(open_reader, open_videos)
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Choose the augmentation of an epoch; call it before iterating over the loader."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self.keyframes)

    def __getitem__(self, index: int) -> Clip:
        keyframe = self.keyframes[index]
        reader = self._readers(keyframe.video)
        frames = reader.read(self.sampler(keyframe, reader))
        given = keyframe.boxes if keyframe.proposals is None else np.concatenate([keyframe.boxes, keyframe.proposals])
        clip, boxes = self.transform(frames, given, self._generator(index))
        truth, proposed = boxes.split([len(keyframe.boxes), len(boxes) - len(keyframe.boxes)])
        scores = keyframe.proposal_scores
        return Clip(
            frames=clip,
            target=Target(boxes=truth, labels=torch.from_numpy(keyframe.labels).float()),
            keyframe=torch.tensor(index),
            original_size=torch.tensor(frames.shape[1:3]),
            proposals=None if scores is None else Proposals(proposed, torch.from_numpy(scores).float()),
        )

    def keyframe_image(self, index: int) -> np.ndarray:
        """Keyframe `index` in its original size: (H, W, 3) uint8 RGB."""
        keyframe = self.keyframes[index]
        reader = self._readers(keyframe.video)
        indices = self.sampler(keyframe, reader)
        return reader.read(indices[[len(indices) // 2]])[0]

    def _generator(self, index: int) -> torch.Generator | None:
        if not self.transform.is_random:
            return None
        entropy = np.random.SeedSequence((self.seed, int(self._epoch), index))
        return torch.Generator().manual_seed(int(entropy.generate_state(1, np.uint64)[0] >> np.uint64(1)))
