"""Tube data as DataModules: every packaging and pixel layout, which frames count, clear errors, end to end."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import command
from media import numbered_frames, write_frames, write_video

from evad.config import load_config
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.data.clips.tubes import FrameOnlyTubeMAP, TubeDataModule
from evad.data.mini.datamodules import MiniTubeDataModule
from evad.data.mini.tubes import LAYOUTS, mini_tubes_folder
from evad.data.video.images import FrameReader
from evad.data.video.readers import PyAVReader
from evad.metrics.tube_map import TubeMAP
from evad.metrics.tubes import evaluate_files
from evad.structures import Detections

HEIGHT, WIDTH = 32, 40  # of numbered_frames
NFRAMES = {"dive/a": 6, "dive/b": 5, "run/c": 7, "run/d": 4}
BOX = [8, 4, 23, 19]  # corner pixels included: 0.2, 0.125, 0.6, 0.625 as fractions


def tube(first, last):
    return np.array([[frame, *BOX] for frame in range(first, last + 1)], dtype=np.float32)


CONTENT = {
    "labels": ["dive", "run"],
    "train_videos": [["dive/a", "run/c"], ["dive/b", "run/d"]],
    "test_videos": [["dive/b", "run/d"], ["dive/a", "run/c"]],
    "nframes": NFRAMES,
    "resolution": dict.fromkeys(NFRAMES, (HEIGHT, WIDTH)),
    "gttubes": {
        "dive/a": {0: [tube(1, 6), tube(3, 4)]},
        "dive/b": {0: [tube(2, 4)]},
        "run/c": {1: [tube(2, 3)]},
        "run/d": {1: [tube(1, 4)]},
    },
}


def span_of(label, rows):
    """A tube as pyannot.pkl has it."""
    boxes = np.array([[8, 4, 16, 16]] * len(rows), dtype=np.uint8)
    return {"label": label, "sf": int(rows[0, 0]) - 1, "ef": int(rows[-1, 0]), "boxes": boxes}


PYANNOT = {
    video: {"numf": NFRAMES[video], "label": label, "annotations": [span_of(label, rows) for rows in tubes]}
    for video, by_class in CONTENT["gttubes"].items()
    for label, tubes in by_class.items()
}


def write_pickle(path, content=CONTENT):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content, protocol=2))


@pytest.fixture
def root(tmp_path):
    """Four videos as frame folders, two splits."""
    write_pickle(tmp_path / "UCF101v2-GT.pkl")
    for video, count in NFRAMES.items():
        write_frames(tmp_path / "rgb-images" / video, numbered_frames(count), "%05d.png")
    return tmp_path


def module(root, **settings):
    settings = {
        "sampler": ClipSampler(4, 2),
        "num_classes": 2,
        "train_transform": VideoTransform(HEIGHT, flip=0.5),
        "val_transform": VideoTransform(HEIGHT),
        "batch_size": 2,
        "num_workers": 0,
        **settings,
    }
    return TubeDataModule(root, **settings)


def ready(root, stage="fit", **settings):
    data = module(root, **settings)
    data.setup(stage)
    return data


def keys(dataset):
    return [(keyframe.video, int(keyframe.timestamp)) for keyframe in dataset.keyframes]


def span(video, first, last):
    return [(video, frame) for frame in range(first, last + 1)]


def test_annotated_frames_train_and_every_frame_validates(root):
    data = ready(root)
    assert keys(data.train_dataset) == [*span("dive/a", 1, 6), *span("run/c", 2, 3)]
    assert keys(data.val_dataset) == [*span("dive/b", 1, 5), *span("run/d", 1, 4)]
    assert [len(keyframe.boxes) for keyframe in data.train_dataset.keyframes] == [1, 1, 2, 2, 1, 1, 1, 1]
    assert [len(keyframe.boxes) for keyframe in data.val_dataset.keyframes] == [0, 1, 1, 1, 0, 1, 1, 1, 1]


def test_validation_can_be_thinned(root):
    assert keys(ready(root, val_every_frame=False).val_dataset) == [*span("dive/b", 2, 4), *span("run/d", 1, 4)]
    data = ready(root, val_stride=3)
    assert keys(data.val_dataset) == [("dive/b", 1), ("dive/b", 4), ("run/d", 1), ("run/d", 4)]
    assert len(data.train_dataset) == 8


def test_splits_exchange_their_videos(root):
    data = ready(root, split=2)
    assert {keyframe.video for keyframe in data.val_dataset.keyframes} == {"dive/a", "run/c"}
    with pytest.raises(ValueError, match="split 3 does not exist; choose one of 1 to 2"):
        ready(root, split=3)


def test_classes_are_numbered_from_0_in_the_order_of_the_file(root):
    data = ready(root)
    assert data.class_ids == data.evaluated == [0, 1]
    assert data.class_names == {0: "dive", 1: "run"}
    assert data.num_classes == 2
    assert data.val_dataset[8].target.labels.tolist() == [[0, 1]]


def test_clip_is_clamped_to_the_video_and_its_box_covers_the_corner_pixels(root):
    clip = ready(root).val_dataset[3]  # dive/b, frame 4 of 5
    truth = torch.from_numpy(numbered_frames(5)[[0, 1, 3, 4]]).permute(3, 0, 1, 2)  # -4, -2, 0, +2 around index 3
    truth[:, 0] = torch.from_numpy(numbered_frames(5)[0]).permute(2, 0, 1)
    torch.testing.assert_close(clip.frames, (truth / 255 - 0.45) / 0.225)
    torch.testing.assert_close(clip.target.boxes, torch.tensor([[8.0, 4.0, 24.0, 20.0]]))


@pytest.mark.parametrize("folder", ["", "splitfiles"])
def test_both_packagings_give_the_same_keyframes(root, folder):
    expected = ready(root)
    (root / "UCF101v2-GT.pkl").unlink()
    write_pickle(root / folder / "pyannot.pkl", PYANNOT)
    (root / folder / "testlist01.txt").write_text("dive/b\nrun/d\n")
    data = ready(root)
    for name in ("train_dataset", "val_dataset"):
        mine, theirs = getattr(data, name).keyframes, getattr(expected, name).keyframes
        assert [(k.video, k.timestamp, k.position) for k in mine] == [
            (k.video, k.timestamp, k.position) for k in theirs
        ]
        for a, b in zip(mine, theirs, strict=True):
            # The packaging does not say how large the videos are: they are taken for UCF101's.
            np.testing.assert_allclose(a.boxes * [320, 240, 320, 240], b.boxes * [WIDTH, HEIGHT, WIDTH, HEIGHT])
            np.testing.assert_array_equal(a.labels, b.labels)
            np.testing.assert_array_equal(a.actors, b.actors)


def test_files_can_be_named(root):
    (root / "UCF101v2-GT.pkl").rename(root / "mine.pkl")
    (root / "rgb-images").rename(root / "stills")
    data = ready(root, annotations="mine.pkl", pixels="stills")
    assert len(data.val_dataset[0].frames) == 3
    (root / "mine.pkl").unlink()
    write_pickle(root / "other.pkl", PYANNOT)
    (root / "names.txt").write_text("dive/b\nrun/d\n")
    assert len(ready(root, annotations="other.pkl", test_list="names.txt", pixels="stills").val_dataset) == 9
    with pytest.raises(ValueError, match="name the list of its test videos"):
        ready(root, annotations="other.pkl", pixels="stills")


@pytest.mark.parametrize("folder", ["rgb-images", "Frames", "frames"])
def test_frame_folders_of_either_data_set_are_found(root, folder):
    (root / "rgb-images").rename(root / folder)
    data = ready(root)
    assert isinstance(data.source("val")("run/d"), FrameReader)
    assert data.val_dataset[0].frames.shape == (3, 4, HEIGHT, WIDTH)


def test_videos_give_the_same_clips_as_their_frames(root):
    expected = [ready(root).val_dataset[index].frames for index in range(9)]
    (root / "rgb-images").rename(root / "elsewhere")
    for video, count in NFRAMES.items():
        write_video(root / "videos" / f"{video}.avi", numbered_frames(count), fps=25)
    data = ready(root, backend="pyav")
    assert isinstance(data.source("val")("run/d"), PyAVReader)
    for index, frames in enumerate(expected):
        assert torch.equal(data.val_dataset[index].frames, frames)


def test_metric_scores_frames_and_tubes_with_the_class_numbers_of_detection_files(root):
    data = ready(root)
    metric = data.build_metric()
    assert type(metric) is TubeMAP
    perfect = [detections(keyframe) for keyframe in data.val_dataset.keyframes]
    metric.update(torch.arange(len(perfect)), perfect)
    scores = metric.compute()
    assert scores["mAP"] == scores["AP/0"] == scores["AP/1"] == 1
    assert "video_mAP@0.5" in scores
    assert set(metric.detections_frame()["label"]) == {0, 1}


def detections(keyframe):
    n = len(keyframe.boxes)
    boxes = torch.tensor(keyframe.boxes * [WIDTH, HEIGHT, WIDTH, HEIGHT])
    return Detections(boxes, torch.ones(n), torch.tensor(keyframe.labels) * 0.9, torch.tensor([HEIGHT, WIDTH]))


def test_frames_apart_have_no_video_map(root):
    data = ready(root, val_stride=3)
    metric = data.build_metric()
    assert type(metric) is FrameOnlyTubeMAP
    metric.update(torch.arange(4), [detections(keyframe) for keyframe in data.val_dataset.keyframes])
    assert set(metric.compute()) == {"mAP", "person_AP", "AP/0", "AP/1"}


def test_metric_takes_the_minimum_score_and_no_protocol(root):
    data = ready(root, min_score=0.25)
    assert data.build_metric().min_score == 0.25
    assert data.build_metric(None).min_score == 0.25
    with pytest.raises(ValueError, match="protocol 'activitynet_2019' is for AVA"):
        data.build_metric("activitynet_2019")


def test_missing_frames_are_listed_at_setup(root):
    (root / "rgb-images/dive/b").rename(root / "gone")
    with pytest.raises(ValueError, match=r"1 of 2 val videos \(dive/b\) are not in .*rgb-images; add them"):
        ready(root)


def test_missing_videos_are_listed_at_setup(root):
    (root / "rgb-images").rename(root / "elsewhere")
    write_video(root / "videos/dive/a.mp4", numbered_frames(6))
    with pytest.raises(ValueError, match=r"1 of 2 train videos \(run/c\) are not in .*videos; add them"):
        ready(root)


def test_frames_beyond_the_end_of_a_video_are_an_error(root):
    for number in (3, 4, 5):
        (root / f"rgb-images/dive/b/{number:05d}.png").unlink()
    data = ready(root)
    with pytest.raises(ValueError, match=r"video dive/b: keyframe 4 is frame 3, but the video has 2 frames"):
        data.val_dataset[3]


def test_a_folder_without_annotations_or_pixels_is_an_error(root):
    (root / "rgb-images").rename(root / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"no folder of frames or videos \(rgb-images, Frames, .*data\.pixels"):
        ready(root)
    with pytest.raises(FileNotFoundError, match=r"no folder of frames or videos \(stills\)"):
        ready(root, pixels="stills")
    (root / "UCF101v2-GT.pkl").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no tube annotations in this folder \(UCF101v2-GT\.pkl, JHMDB-GT\.pkl"
    ):
        ready(root)
    with pytest.raises(FileNotFoundError, match=r"no tube annotations in this folder \(mine\.pkl\)"):
        ready(root, annotations="mine.pkl")


def test_a_split_without_annotated_frames_is_an_error(root):
    write_pickle(root / "UCF101v2-GT.pkl", {**CONTENT, "gttubes": {}})
    with pytest.raises(ValueError, match="split 1 has no train frames"):
        ready(root)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sampler": ClipSampler(4, 2, annotated_fps=25)}, "annotated_fps is 25, but tubes are annotated by frame"),
        ({"val_stride": 0}, "val_stride is 0; it must be 1"),
    ],
)
def test_impossible_settings_are_refused(root, settings, message):
    with pytest.raises(ValueError, match=message):
        module(root, **settings)


def test_another_number_of_classes_is_an_error(root):
    with pytest.raises(
        ValueError, match=r"UCF101v2-GT\.pkl names 2 classes, but num_classes is 24; set data\.num_classes=2"
    ):
        ready(root, num_classes=24)


# Experiments


@pytest.mark.parametrize(("experiment", "classes"), [("ucf24_vitb", 24), ("jhmdb_vitb", 21)])
def test_experiments_follow_the_paper(experiment, classes):
    cfg = load_config([f"experiment={experiment}", "paths.data=data"])
    assert cfg.model.num_classes == cfg.data.num_classes == classes
    assert cfg.model.keep_rate == 0.6
    assert cfg.data.split == 1
    assert (cfg.data.val_every_frame, cfg.data.val_stride, cfg.data.sampler.annotated_fps) == (True, 1, None)
    assert (cfg.data.sampler.num_frames, cfg.data.sampler.frame_stride) == (16, 4)
    assert list(cfg.data.train_transform.short_side) == [256, 320]
    assert cfg.data.train_transform.max_size == cfg.data.val_transform.max_size == 1333
    assert cfg.data.train_transform.flip == 0.5
    assert cfg.trainer.max_epochs == 12
    assert cfg.recipe.loss_weights.action == 12


@pytest.mark.parametrize("layout", ["ucf24", "jhmdb"])
def test_generated_data_comes_with_the_data_module(tmp_path, layout):
    data = MiniTubeDataModule(
        tmp_path / "mini", ClipSampler(8, 2), layout, num_videos=21, val_transform=VideoTransform(64)
    )
    data.prepare_data()
    data.setup("validate")
    assert data.num_classes == len(data.class_names) == 7
    assert len({keyframe.video for keyframe in data.val_dataset.keyframes}) == 7
    assert data.val_dataset[0].frames.shape == (3, 8, 64, 64)
    stamp = json.loads((tmp_path / f"mini/{layout}-21-seed0-v1/mini.json").read_text())
    assert (stamp["layout"], stamp["num_videos"], stamp["seed"]) == (layout, 21, 0)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["ucf24", "jhmdb"])
def test_generated_data_trains_and_evaluates_from_the_command_line(tmp_path, layout):
    tiny = ["data.num_videos=21", "data.num_workers=0", "logger=csv", "callbacks.progress=null", "debug=quick"]
    command(
        "evad.train", f"experiment=mini_{layout}", *tiny, "trainer.accelerator=cpu", "hydra.run.dir=run", cwd=tmp_path
    )
    log = pd.read_csv(tmp_path / "run/metrics.csv")
    assert log["val/mAP"].notna().sum() == log["val/video_mAP@0.5"].notna().sum() == 1
    assert list(json.loads((tmp_path / "run/classes.json").read_text())) == [str(k) for k in range(7)]
    done = command("evad.eval", "ckpt_path=run/checkpoints/best.ckpt", f"hydra.run.dir={tmp_path}/ev", cwd=tmp_path)
    assert "limits more" in done.stdout + done.stderr
    report = json.loads((tmp_path / "ev/metrics.json").read_text())
    assert list(report["per_class"]) == ["stand", "walk", "run", "jump", "squat", "wave", "clap"]
    assert report["decomposition"]["persons"] > 0

    ground_truth = mini_tubes_folder(tmp_path / f"data/mini_{layout}", layout, 21) / LAYOUTS[layout].pickle
    scores = evaluate_files(str(ground_truth), str(tmp_path / "ev/detections.csv"), split=1)["splits"]["split1"]
    assert scores["frame_ap_raw"]["mAP"] <= report["mAP"] + 1e-6  # only two batches of the test videos were seen
