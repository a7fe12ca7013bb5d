"""A detector as one file: the same outputs without this package."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from media import write_video

from evad.config import load_config
from evad.data.clips.collate import PaddingCollate
from evad.data.video.readers import open_video
from evad.detector import Detector
from evad.export import FrameDetector, largest_difference, random_frames
from evad.models.postprocess import PostProcess
from evad.runs.build import build_model, build_part

CONFIG = [
    "experiment=mini",
    "data.val_transform.short_side=24",
    "model.keep_rate=0.7",
    "model.decoder_depth=1",
    "model.net.encoder.depth=4",
    "model.net.encoder.map_blocks=[1,2,3,4]",
    "model.net.encoder.prune_blocks=[2,3]",
]
SIZE = (40, 60)  # height and width: resized to 24 x 36, padded to 32 x 48
QUERIES, CLASSES = 6, 8


@pytest.fixture(scope="module")
def detector():
    cfg = load_config(CONFIG)
    torch.manual_seed(0)
    transform = build_part(cfg, "data.val_transform")
    score = PostProcess("person_times_action")
    return FrameDetector(build_model(cfg), transform, score, SIZE, cfg.data.pad_multiple).eval()


@pytest.fixture(scope="module")
def program(detector, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "detector.pt2"
    torch.export.save(torch.export.export(detector, (random_frames((2, 8, *SIZE, 3), seed=0),)), path)
    return path


def test_boxes_and_scores_are_those_of_prediction(detector, tmp_path):
    """From the same decoded frames, by way of the clip, the padded batch and the postprocessing of `evad.predict`."""
    frames = np.random.default_rng(0).integers(0, 256, (12, *SIZE, 3), dtype=np.uint8)
    path = write_video(tmp_path / "video.mp4", frames, fps=4)
    reader, cfg = open_video(path), load_config(CONFIG)
    indices = [2, 3, 4, 5, 6, 7, 8, 9]  # stride 2 at 8 per second is every frame at 4
    everything = PostProcess("person_times_action", person_threshold=0.0)
    sampler, transform = build_part(cfg, "data.sampler"), build_part(cfg, "data.val_transform")
    names = {str(number): "" for number in range(CLASSES)}
    predicting = Detector(detector.model, sampler, transform, everything, PaddingCollate(cfg.data.pad_multiple), names)
    (expected,) = predicting.detect([predicting.read_clip(reader, 6)])
    with torch.no_grad():
        boxes, persons, actions = (part[0] for part in detector(torch.from_numpy(reader.read(indices))[None]))
    there = (boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])
    assert there.any()
    scale = torch.tensor([SIZE[1], SIZE[0]] * 2)
    torch.testing.assert_close(boxes[there] * scale, expected.boxes, rtol=0, atol=1e-4)
    torch.testing.assert_close(persons[there], expected.person_scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(actions[there], expected.action_scores, rtol=0, atol=1e-6)


def test_program_gives_the_models_outputs_on_other_frames(detector, program):
    for seed in (1, 2):
        assert largest_difference(program, detector, random_frames((2, 8, *SIZE, 3), seed)) < 1e-5


def test_random_choice_of_a_program_repeats(tmp_path):
    """The comparison calls the program twice: with torch's generator in it, the second choice would be another."""
    cfg = load_config([*CONFIG, "model/pruning=random"])
    torch.manual_seed(0)
    transform = build_part(cfg, "data.val_transform")
    detector = FrameDetector(build_model(cfg), transform, PostProcess(), SIZE, 16).eval()
    frames = random_frames((1, 8, *SIZE, 3), seed=0)
    torch.export.save(torch.export.export(detector, (frames,)), tmp_path / "random.pt2")
    assert largest_difference(tmp_path / "random.pt2", detector, frames) < 1e-5


def test_program_of_another_detector_is_an_error(detector, program):
    torch.manual_seed(1)
    other = FrameDetector(build_model(load_config(CONFIG)), detector.transform, detector.postprocess, SIZE, 16).eval()
    with pytest.raises(RuntimeError, match="outputs that differ"):
        largest_difference(program, other, random_frames((2, 8, *SIZE, 3), 1))


def test_program_runs_without_the_package(detector, program, tmp_path):
    frames = random_frames((2, 8, *SIZE, 3), seed=3)
    np.save(tmp_path / "frames.npy", frames.numpy())
    code = f"""
import sys
import numpy, torch, torchvision
detector = torch.export.load({str(program)!r}).module()
for name, part in zip(("boxes", "persons", "actions"), detector(torch.from_numpy(numpy.load("frames.npy")))):
    numpy.save(name, part.numpy())  # fails where a gradient is kept
assert not any(name.partition(".")[0] in ("evad", "timm", "lightning", "hydra") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    with torch.no_grad():
        expected = detector(frames)
    shapes = [(2, QUERIES, 4), (2, QUERIES), (2, QUERIES, CLASSES)]
    for name, part, shape in zip(("boxes", "persons", "actions"), expected, shapes):
        loaded = torch.from_numpy(np.load(tmp_path / f"{name}.npy"))
        assert loaded.shape == shape
        torch.testing.assert_close(loaded, part, rtol=0, atol=1e-5)


def test_external_boxes_are_refused(detector):
    model = build_model(load_config([*CONFIG, "model/localization=external"]))
    with pytest.raises(ValueError, match="classifies boxes that another detector found"):
        FrameDetector(model, detector.transform, detector.postprocess, SIZE, 16)
