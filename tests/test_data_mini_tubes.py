import pickle
import sys
from itertools import chain

import numpy as np
import pytest
from PIL import Image

from evad.data.mini import tubes as mini_tubes
from evad.data.mini.render import actor_boxes, render
from evad.data.mini.tubes import LAYOUTS, TUBE_CLASSES, TubeJob, ensure_mini_tubes, video_scene

NUM_VIDEOS = 21


@pytest.fixture(scope="module", params=["ucf24", "jhmdb"])
def made(request, tmp_path_factory):
    """Layout name, folder and contents of the pickle."""
    root = ensure_mini_tubes(tmp_path_factory.mktemp(request.param) / "data", request.param, NUM_VIDEOS, 5, workers=1)
    return request.param, root, pickle.loads((root / LAYOUTS[request.param].pickle).read_bytes(), encoding="latin1")


def test_every_frame_has_an_image_and_every_video_an_annotation(made):
    layout, root, truth = made
    assert truth["labels"] == ["stand", "walk", "run", "jump", "squat", "wave", "clap"]
    assert len(truth["nframes"]) == NUM_VIDEOS
    for video, frames in truth["nframes"].items():
        folder = root / LAYOUTS[layout].frames / video
        names = sorted(path.name for path in folder.iterdir())
        assert names == [f"{number:05d}{LAYOUTS[layout].suffix}" for number in range(1, frames + 1)]
        assert LAYOUTS[layout].lengths[0] <= frames <= LAYOUTS[layout].lengths[1]
        assert truth["resolution"][video] == (64, 64)
        assert Image.open(folder / names[0]).size == (64, 64)


def test_tubes_are_contiguous_boxes_of_the_one_class_of_the_video(made):
    layout, _, truth = made
    for video, by_class in truth["gttubes"].items():
        assert [TUBE_CLASSES[number] for number in by_class] == [video.split("/")[0]]
        (tubes,) = by_class.values()
        assert 1 <= len(tubes) <= LAYOUTS[layout].most_actors
        for tube in tubes:
            assert tube.dtype == np.float32
            assert tube.shape[1] == 5
            assert (np.diff(tube[:, 0]) == 1).all()
            assert 1 <= tube[0, 0] < tube[-1, 0] <= truth["nframes"][video]
            assert len(tube) >= 16
            assert (tube[:, 1:] >= 0).all()
            assert (tube[:, 1:] <= 63).all()  # corner pixels are included
            assert (tube[:, 3:] - tube[:, 1:3] >= 4).all()
            if layout == "jhmdb":
                assert len(tube) == truth["nframes"][video]


def test_tubes_and_images_are_those_of_the_scene(made):
    layout, root, truth = made
    for index in (0, 9):
        scene = video_scene(TubeJob(5, layout, index, root))
        video = f"{TUBE_CLASSES[index % 7]}/{TUBE_CLASSES[index % 7]}_{index:05d}"
        boxes, frames = actor_boxes(scene), render(scene)
        for number, tube in enumerate(truth["gttubes"][video][index % 7]):
            expected = boxes[tube[:, 0].astype(int) - 1, number] - [0, 0, 1, 1]
            np.testing.assert_array_equal(tube[:, 1:], expected.astype(np.float32))
            assert np.isnan(boxes[:, number]).any(axis=1).sum() == len(frames) - len(tube)
        image = np.asarray(Image.open(root / LAYOUTS[layout].frames / video / f"00003{LAYOUTS[layout].suffix}"))
        error = np.abs(image.astype(int) - frames[2])
        assert error.max() == 0 if layout == "jhmdb" else error.mean() < 4


def test_splits_are_disjoint_complete_and_hold_every_class(made):
    layout, _, truth = made
    splits = LAYOUTS[layout].num_splits
    assert len(truth["train_videos"]) == len(truth["test_videos"]) == splits
    for train, test in zip(truth["train_videos"], truth["test_videos"]):
        assert sorted([*train, *test]) == sorted(truth["nframes"])
        assert len(test) == NUM_VIDEOS // 3
        assert {video.split("/")[0] for video in test} == {video.split("/")[0] for video in train} == set(TUBE_CLASSES)
    if splits == 3:
        assert sorted(chain(*truth["test_videos"])) == sorted(truth["nframes"])


def test_some_tubes_of_ucf24_cover_a_part_of_their_video():
    jobs = [TubeJob(0, "ucf24", index, None) for index in range(20)]
    share = np.mean([actor.visible.all() for job in jobs for actor in video_scene(job).actors])
    assert 0.2 < share < 0.8


def test_pickle_is_of_protocol_2_and_the_same_for_the_same_seed(made, tmp_path):
    layout, root, _ = made
    name = LAYOUTS[layout].pickle
    assert (root / name).read_bytes()[:2] == b"\x80\x02"
    again = ensure_mini_tubes(tmp_path / "again", layout, NUM_VIDEOS, 5, workers=2)
    assert (again / name).read_bytes() == (root / name).read_bytes()
    for path in root.rglob("*00007/*"):
        assert path.read_bytes() == (again / path.relative_to(root)).read_bytes()


def test_both_layouts_live_side_by_side(tmp_path):
    first = ensure_mini_tubes(tmp_path, "jhmdb", NUM_VIDEOS, workers=1)
    second = ensure_mini_tubes(tmp_path, "ucf24", NUM_VIDEOS, workers=1)
    assert {path.name for path in first.iterdir()} == {"mini.json", "Frames", "JHMDB-GT.pkl"}
    assert {path.name for path in second.iterdir()} == {"mini.json", "rgb-images", "UCF101v2-GT.pkl"}


def test_unknown_layouts_and_too_few_videos_are_refused(tmp_path):
    with pytest.raises(ValueError, match="layout is 'ucf'; it must be one of ucf24, jhmdb"):
        ensure_mini_tubes(tmp_path, "ucf")
    with pytest.raises(ValueError, match="num_videos is 20; every class needs 3 videos: give 21 or more"):
        ensure_mini_tubes(tmp_path, "jhmdb", 20)


def test_command_line_generates(tmp_path, monkeypatch):
    arguments = [str(tmp_path), "--layout", "jhmdb", "--num-videos", "21", "--seed", "1", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["mini_tubes", *arguments])
    mini_tubes.main()
    assert (mini_tubes.mini_tubes_folder(tmp_path, "jhmdb", 21, 1) / "JHMDB-GT.pkl").exists()
