"""ActionDataset: the right frames of real files, and augmentation that is a function of seed, epoch and index."""

import pickle

import numpy as np
import pytest
import torch
from media import numbered_frames, write_video
from torch.utils.data import DataLoader

from evad.data.clips.collate import PaddingCollate
from evad.data.clips.dataset import ActionDataset
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.data.video.sources import VideoFiles
from evad.structures import Keyframe

HEIGHT, WIDTH, CLASSES = 32, 40, 3
RANDOM = VideoTransform((32, 40), flip=0.5, color_jitter=0.3)


def keyframe(video, position, people=1):
    boxes = np.tile([[0.25, 0.5, 0.75, 1.0]], (people, 1))
    labels = np.eye(CLASSES, dtype=np.float32)[:people]
    return Keyframe(video, str(position), position, boxes, labels, np.arange(people))


@pytest.fixture
def files(tmp_path):
    for fps in (6, 25, 30):
        write_video(tmp_path / f"at{fps}.mp4", numbered_frames(3 * fps), fps)
    return VideoFiles(tmp_path)


@pytest.fixture
def keyframes():
    return [keyframe(f"at{fps}", 30 * second, people) for fps in (25, 6, 30) for second, people in ((1, 2), (2, 0))]


def dataset(keyframes, files, transform=VideoTransform(32), seed=0):  # noqa: B008 (frozen)
    return ActionDataset(keyframes, files, ClipSampler(4, 6, annotated_fps=30), transform, seed)


def loaded(data, workers):
    loader = DataLoader(data, batch_size=2, num_workers=workers, collate_fn=PaddingCollate(32))
    return [(batch.clips, batch.keyframes, [target.boxes for target in batch.targets]) for batch in loader]


def test_clip_holds_the_frames_of_its_instants(files, keyframes):
    data = dataset(keyframes, files)
    expected = {"at30": [18, 24, 30, 36], "at25": [15, 20, 25, 30], "at6": [4, 5, 6, 7]}
    for index, frame in enumerate(keyframes):
        clip = data[index]
        shift = {"at30": 30, "at25": 25, "at6": 6}[frame.video] if frame.position == 60 else 0
        truth = numbered_frames(90)[np.array(expected[frame.video]) + shift]
        np.testing.assert_allclose(clip.frames, (truth.transpose(3, 0, 1, 2) / 255 - 0.45) / 0.225, atol=1e-6)
        assert clip.keyframe == index
        assert clip.original_size.tolist() == [HEIGHT, WIDTH]


def test_target_is_in_pixels_and_may_be_empty(files, keyframes):
    data = dataset(keyframes, files, VideoTransform(64))
    assert data[0].target.boxes.tolist() == [[20, 32, 60, 62]] * 2
    assert data[0].target.labels.tolist() == [[1, 0, 0], [0, 1, 0]]
    assert data[1].target.boxes.shape == (0, 4)
    assert data[1].target.labels.shape == (0, CLASSES)


@pytest.mark.parametrize("transform", [VideoTransform(32), RANDOM])
def test_workers_change_nothing(files, keyframes, transform):
    data = dataset(keyframes, files, transform)
    data.set_epoch(4)
    for main, worker in zip(loaded(data, 0), loaded(data, 2), strict=True):
        torch.testing.assert_close(main, worker, rtol=0, atol=0)


def test_augmentation_differs_between_seeds_epochs_and_samples(files):
    data = dataset([keyframe("at25", 30)] * 2, files, VideoTransform(32, color_jitter=0.5))
    clips = [data[0].frames, data[1].frames]
    data.set_epoch(1)
    clips.append(data[0].frames)
    clips.append(dataset(data.keyframes, files, data.transform, seed=1)[0].frames)
    for first in range(4):
        for second in range(first):
            assert not torch.equal(clips[first], clips[second])
    data.set_epoch(0)
    assert torch.equal(data[0].frames, clips[0])


def test_new_epoch_reaches_persistent_workers(files, keyframes):
    data = dataset(keyframes, files, RANDOM)
    loader = DataLoader(data, num_workers=2, persistent_workers=True, collate_fn=PaddingCollate(64))
    for epoch in (0, 1, 0):
        data.set_epoch(epoch)
        clips = [batch.clips for batch in loader]
        expected = [PaddingCollate(64)([data[index]]).clips for index in range(len(data))]
        assert all(torch.equal(clip, truth) for clip, truth in zip(clips, expected, strict=True))


@pytest.mark.slow
def test_spawned_workers_read_the_same(files, keyframes):
    data = dataset(keyframes, files, RANDOM)
    loader = DataLoader(data, num_workers=1, collate_fn=PaddingCollate(64), multiprocessing_context="spawn")
    data.set_epoch(2)
    for index, batch in enumerate(loader):
        assert torch.equal(batch.clips, PaddingCollate(64)([data[index]]).clips)


def test_used_dataset_can_be_pickled(files, keyframes):
    data = dataset(keyframes, files)
    truth = data[0].frames
    assert torch.equal(pickle.loads(pickle.dumps(data))[0].frames, truth)


def test_missing_video_is_named(files):
    with pytest.raises(FileNotFoundError, match="video 'nothing' has no file in"):
        dataset([keyframe("nothing", 0)], files)[0]


def test_keyframe_image_is_the_stored_picture(files, keyframes):
    np.testing.assert_array_equal(dataset(keyframes, files, RANDOM).keyframe_image(0), numbered_frames(30)[25])
