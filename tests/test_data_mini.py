import csv
import json
import runpy
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from evad.data.clips.sampling import ClipSampler
from evad.data.mini import ava as mini
from evad.data.mini import store as mini_store
from evad.data.mini.ava import ACTION_IDS, KEYFRAME, NUM_FRAMES, clip_scene, ensure_mini, read_rows, read_video
from evad.data.mini.datamodules import MiniDataModule
from evad.data.mini.render import BACKGROUND_MARGIN, Actor, Limb, Scene, actor_boxes, render
from evad.data.mini.scene import ARMS, CLASSES, GESTURES, IMAGE_SIZE, POSES, sample_scene
from evad.files.label_map import read_label_map

SMALL = {"train_clips": 5, "val_clips": 2, "seed": 3, "workers": 1}
VISOR_LIMB, TORSO_LIMB = 8, 6


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return ensure_mini(tmp_path_factory.mktemp("mini") / "data", **SMALL)


def contents(root):
    """Path -> bytes of every annotation and video."""
    paths = sorted([*root.glob("annotations/*"), *root.glob("videos/*")])
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def blank_scene(actors=(), props=(), camera=((0.0, 0.0),), level=0.0, height=9, width=11):
    margin = 2 * BACKGROUND_MARGIN
    background = np.full((height + margin, width + margin, 3), level, dtype=np.float32)
    return Scene(background, np.array(camera), tuple(props), tuple(actors))


def disc(x, y, radius, color=(1.0, 1.0, 1.0), frames=1):
    return Limb(np.full((2, frames, 2), (x, y), dtype=float), radius, color)


# Drawing


def test_disc_covers_a_pixel_by_how_deep_its_centre_lies_inside():
    image = render(blank_scene(props=[disc(5.5, 4.5, 2.0)]))[0]
    assert image.shape == (9, 11, 3)
    assert image[4, 2:9, 0].tolist() == [0, 128, 255, 255, 255, 128, 0]  # centres at distance 3, 2, 1, 0, 1, 2, 3
    assert image[1:8, 5, 2].tolist() == [0, 128, 255, 255, 255, 128, 0]


def test_limb_is_as_thick_along_its_length_as_at_its_ends():
    limb = Limb(np.array([[[3.5, 4.5]], [[7.5, 4.5]]]), 1.0, (1.0, 0.0, 0.0))
    image = render(blank_scene(props=[limb]))[0]
    assert image[4, :, 0].tolist() == [0, 0, 128, 255, 255, 255, 255, 255, 128, 0, 0]
    assert image[3, :, 0].tolist() == [0, 0, 22, 128, 128, 128, 128, 128, 22, 0, 0]  # 22 = 255 * (1.5 - sqrt(2))
    assert (image[..., 1:] == 0).all()


def test_later_actors_hide_earlier_ones_and_all_hide_props():
    always = np.array([True])
    red, blue = (Actor((disc(5.5, 4.5, 2, color),), (), always) for color in ((1.0, 0, 0), (0, 0, 1.0)))
    prop = disc(5.5, 4.5, 2, (0, 1.0, 0))
    assert render(blank_scene([red, blue], [prop]))[0, 4, 5].tolist() == [0, 0, 255]
    assert render(blank_scene([red], [prop]))[0, 4, 5].tolist() == [255, 0, 0]


def test_camera_shifts_background_limbs_and_boxes_alike():
    scene = blank_scene([Actor((disc(5.5, 4.5, 2, frames=2),), (), np.ones(2, dtype=bool))], camera=((0, 0), (2, -1)))
    scene.background[BACKGROUND_MARGIN + 7, BACKGROUND_MARGIN + 1] = 0.5
    first, second = render(scene)
    assert (second[:-1, 2:] == first[1:, :-2]).all()
    assert first[7, 1].tolist() == second[6, 3].tolist() == [128, 128, 128]
    assert actor_boxes(scene)[:, 0].tolist() == [[3.5, 2.5, 7.5, 6.5], [5.5, 1.5, 9.5, 5.5]]


def test_background_moves_by_fractions_of_a_pixel():
    scene = blank_scene(camera=((0.25, 0.0),))
    scene.background[BACKGROUND_MARGIN + 3, BACKGROUND_MARGIN + 4] = 0.8
    assert render(scene)[0, 3, 3:7, 0].tolist() == [0, 153, 51, 0]


def test_boxes_are_cut_at_the_image_and_nan_where_nobody_is():
    actor = Actor((disc(1.0, 8.0, 2, frames=2),), (), np.array([True, False]))
    scene = blank_scene([actor], camera=((0, 0), (0, 0)))
    boxes = actor_boxes(scene)
    assert boxes.shape == (2, 1, 4)
    assert boxes[0, 0].tolist() == [0, 6, 3, 9]
    assert np.isnan(boxes[1]).all()
    assert render(scene)[0].max() == 255
    assert render(scene)[1].max() == 0


def test_a_scene_without_actors_has_no_boxes():
    assert actor_boxes(blank_scene()).shape == (1, 0, 4)


# Scenes


@pytest.mark.parametrize("index", range(6))
def test_boxes_hold_every_lit_pixel_of_an_actor_tightly_in_every_frame(index):
    scene = clip_scene(0, "train", index)
    boxes = actor_boxes(scene)
    dark = replace(scene, background=np.zeros_like(scene.background), props=())
    for number, actor in enumerate(scene.actors):
        white = Actor(tuple(replace(limb, color=(1.0,) * 3) for limb in actor.limbs), (), actor.visible)
        for frame, box in zip(render(replace(dark, actors=(white,))), boxes[:, number]):
            rows, columns = np.nonzero(frame[..., 0] > 127)  # at least half covered
            lit = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
            assert np.abs(lit - box).max() <= 1


def test_everybody_is_inside_the_image_with_a_box_of_some_size():
    for index in range(60):
        boxes = actor_boxes(clip_scene(0, "val", index))
        assert (boxes >= 0).all()
        assert (boxes <= IMAGE_SIZE).all()
        assert (boxes[..., 2:] - boxes[..., :2] >= 5).all()


def test_people_hide_little_of_each_other_in_the_keyframe():
    for index in range(60):
        boxes = torch.from_numpy(actor_boxes(clip_scene(0, "val", index))[KEYFRAME])
        assert (box_iou(boxes, boxes).fill_diagonal_(0) < 0.4).all()


def test_everybody_has_one_pose_and_at_most_one_gesture():
    numbers = set()
    for index in range(60):
        scene = clip_scene(0, "val", index)
        numbers.add(len(scene.actors))
        for actor in scene.actors:
            assert len(set(actor.actions) & set(POSES)) == 1
            assert len(set(actor.actions) & set(GESTURES)) <= 1
            assert set(actor.actions) <= set(CLASSES)
    assert numbers == {1, 2, 3}


def test_watch_means_that_somebody_is_on_the_side_the_visor_is_on():
    watchers = 0
    for index in range(100):
        scene = clip_scene(0, "train", index)
        hips = [actor.limbs[TORSO_LIMB].ends[0, KEYFRAME, 0] for actor in scene.actors]
        for actor, own in zip(scene.actors, hips):
            start, end = actor.limbs[VISOR_LIMB].ends[:, KEYFRAME, 0]
            sees_somebody = any((other - own) * (end - start) > 0 for other in hips)
            assert ("watch" in actor.actions) == sees_somebody
            watchers += sees_somebody
    assert watchers > 50


def test_only_standing_legs_and_stopped_arms_stay_where_they_are():
    still_arms = 0
    for index in range(60):
        for actor in clip_scene(0, "train", index).actors:
            ends = np.stack([limb.ends for limb in actor.limbs])  # (limbs, 2, T, 2)
            moved = np.ptp(ends, axis=2).max(axis=(1, 2))  # pixels, per limb
            legs, arms = moved[[3, 4, 5, 9, 10, 11]].max(), moved[[0, 1, 2, 12, 13, 14]].max()
            assert (legs < 1e-9) == ("stand" in actor.actions)
            if "stand" in actor.actions:
                assert (arms > 2) == bool(set(actor.actions) & set(GESTURES))
                still_arms += arms < 1e-9
    assert still_arms > 10


def test_an_action_asked_for_is_done_by_all_and_mixed_with_no_other_gesture():
    for action in (*POSES, *GESTURES):
        scene = sample_scene(np.random.default_rng(0), 20, num_actors=2, action=action)
        for actor in scene.actors:
            expected = {action, "stand"} if action in GESTURES else {action}
            assert set(actor.actions) - {"watch"} == expected
    assert sum(ARMS.values()) == pytest.approx(1)


def test_actors_that_are_not_visible_leave_the_rest_of_the_scene_as_it_is():
    visible = np.ones((1, 20), dtype=bool)
    visible[0, :5] = False
    whole = sample_scene(np.random.default_rng(1), 20, 1, "run")
    part = sample_scene(np.random.default_rng(1), 20, 1, "run", visible)
    assert (render(whole)[5:] == render(part)[5:]).all()
    assert (render(part)[:5] == render(replace(whole, actors=()))[:5]).all()


# Files


def test_layout_on_disk_is_that_of_ava(root):
    assert root.name == "ava-train5-val2-seed3-v1"
    assert sorted(path.name for path in root.iterdir()) == ["annotations", "mini.json", "videos"]
    assert sorted(path.name for path in (root / "annotations").iterdir()) == ["label_map.pbtxt", "train.csv", "val.csv"]
    expected = [f"train_{i:05d}.mp4" for i in range(5)] + [f"val_{i:05d}.mp4" for i in range(2)]
    assert sorted(path.name for path in (root / "videos").iterdir()) == expected


def test_annotations_are_the_scene_at_the_keyframe(root):
    for split, clips in (("train", 5), ("val", 2)):
        expected = []
        for index in range(clips):
            scene = clip_scene(3, split, index)
            boxes = (actor_boxes(scene)[KEYFRAME] / 64).round(6)
            for person, actor in enumerate(scene.actors):
                for action in actor.actions:
                    expected.append((f"{split}_{index:05d}", 1, *boxes[person], ACTION_IDS[action], person))
        assert [tuple(row) for row in read_rows(root / "annotations" / f"{split}.csv")] == expected


def test_annotations_have_eight_columns_without_header_and_boxes_in_fractions(root):
    with (root / "annotations" / "train.csv").open(newline="") as file:
        for row in csv.reader(file):
            assert len(row) == 8
            x1, y1, x2, y2 = map(float, row[2:6])
            assert 0 <= x1 < x2 <= 1
            assert 0 <= y1 < y2 <= 1


def test_label_map_reads_back_as_the_classes_numbered_from_one(root):
    names = ["stand", "walk", "run", "jump", "squat", "wave", "clap", "watch"]
    assert read_label_map(root / "annotations" / "label_map.pbtxt") == dict(enumerate(names, start=1))


def test_videos_show_the_rendered_frames(root):
    for split, clips in (("train", 5), ("val", 2)):
        for index in range(clips):
            decoded = read_video(root / "videos" / f"{split}_{index:05d}.mp4")
            rendered = render(clip_scene(3, split, index))
            assert decoded.shape == rendered.shape == (NUM_FRAMES, 64, 64, 3)
            luma = np.abs(decoded.mean(axis=-1) - rendered.mean(axis=-1))
            assert luma.mean() < 4  # of 255; colours are stored at half the resolution
            assert luma.max() < 90


def test_stamp_says_how_the_keyframe_is_found(root):
    stamp = json.loads((root / "mini.json").read_text())
    assert stamp == mini.mini_parameters(5, 2, 3)
    assert (stamp["second"] - stamp["first_second"]) * stamp["annotated_fps"] == KEYFRAME == 8


def test_the_seed_alone_decides_whatever_the_number_of_processes(root, tmp_path):
    again = ensure_mini(tmp_path / "again", **{**SMALL, "workers": 2})
    assert contents(again) == contents(root)
    assert (read_video(again / "videos" / "val_00001.mp4") == read_video(root / "videos" / "val_00001.mp4")).all()
    other = ensure_mini(tmp_path / "other", **{**SMALL, "seed": 4})
    for name, data in contents(other).items():
        assert (data == contents(root)[name]) == name.endswith(".pbtxt")


def test_a_clip_does_not_depend_on_how_many_there_are(root, tmp_path):
    fewer = ensure_mini(tmp_path / "fewer", **{**SMALL, "train_clips": 1})
    for name in ("videos/train_00000.mp4", "videos/val_00001.mp4", "annotations/val.csv"):
        assert (fewer / name).read_bytes() == (root / name).read_bytes()


def test_a_complete_folder_is_used_as_it_is_and_other_parameters_leave_it_alone(tmp_path):
    """A job may be reading it."""
    folder = ensure_mini(tmp_path, 2, 1, seed=0, workers=1)
    marker = folder / "videos" / "train_00000.mp4"
    marker.write_bytes(b"kept")
    assert ensure_mini(tmp_path, 2, 1, seed=0, workers=1) == folder
    other = ensure_mini(tmp_path, 1, 1, seed=0, workers=1)
    assert len(list((other / "videos").iterdir())) == 2
    assert marker.read_bytes() == b"kept"
    assert len(list((folder / "videos").iterdir())) == 3


def test_data_module_reads_the_folder_of_its_parameters(tmp_path):
    modules = [MiniDataModule(tmp_path, ClipSampler(8, 2, 8), train_clips=clips, val_clips=1) for clips in (1, 2)]
    for data in modules:
        data.prepare_data()
    for data, clips in zip(modules, (1, 2)):
        data.setup("fit")
        assert len(data.train_dataset) == clips
        assert data.train_dataset[clips - 1].frames.shape[1] == 8


def test_preview_is_one_line_per_clip(root, tmp_path):
    mini.preview(root, tmp_path / "sheet.png", num_clips=5, zoom=2)
    assert Image.open(tmp_path / "sheet.png").size == (8 * 128, 2 * 128)


def test_command_line_generates_and_counts(tmp_path, monkeypatch, capsys):
    arguments = [str(tmp_path / "data"), "--train-clips", "2", "--val-clips", "1", "--seed", "3", "--workers", "1"]
    monkeypatch.setattr(sys, "argv", ["mini", *arguments, "--preview", str(tmp_path / "sheet.png")])
    runpy.run_module("evad.data.mini", run_name="__main__")
    rows = read_rows(mini.mini_folder(tmp_path / "data", 2, 1, 3) / "annotations" / "train.csv")
    counts = {name: sum(row.action == number for row in rows) for name, number in ACTION_IDS.items()}
    assert f"train {counts}" in capsys.readouterr().out
    assert (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(("name", "value"), [("train_clips", 0), ("val_clips", -1)])
def test_numbers_of_clips_below_one_are_refused(tmp_path, name, value):
    with pytest.raises(ValueError, match=rf"{name} is {value}; it must be 1 or more"):
        ensure_mini(tmp_path / "data", **{**SMALL, name: value})
    assert not (tmp_path / "data").exists()


def test_rendering_processes_start_without_torch():
    code = "import sys, evad.data.mini.ava, evad.data.mini.tubes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# Store


def counting(calls):
    def generate(folder):
        calls.append(1)
        (folder / "videos").mkdir()
        (folder / "videos" / f"{len(calls)}.mp4").touch()

    return generate


def test_interrupted_generation_leaves_no_data_set_and_is_done_again(tmp_path):
    def interrupted(folder):
        (folder / "half.mp4").touch()
        raise KeyboardInterrupt

    folder = tmp_path / "data"
    with pytest.raises(KeyboardInterrupt):
        mini_store.ensure_generated(folder, {"seed": 0}, interrupted)
    assert not folder.exists()
    assert mini_store.ensure_generated(folder, {"seed": 0}, counting(calls := []))
    assert [path.name for path in (folder / "videos").iterdir()] == ["1.mp4"]
    assert sorted(path.name for path in folder.iterdir()) == ["mini.json", "videos"]
    assert mini_store.read_stamp(folder) == {"seed": 0}
    assert not mini_store.ensure_generated(folder, {"seed": 0}, counting(calls))
    assert len(calls) == 1


@pytest.mark.parametrize("stamp", [None, "", "{", "[]", '{"seed": 1}'])
def test_a_folder_with_other_content_is_left_alone(tmp_path, stamp):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "precious.mp4").write_bytes(b"1")
    if stamp is not None:
        (tmp_path / "data" / "mini.json").write_text(stamp)
    with pytest.raises(FileExistsError, match="data does not hold the data set that its name describes; move it away"):
        mini_store.ensure_generated(tmp_path / "data", {"seed": 0}, counting([]))
    assert (tmp_path / "data" / "precious.mp4").read_bytes() == b"1"


def test_of_two_that_ask_at_once_one_generates(tmp_path):
    calls = []
    with ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(mini_store.ensure_generated, tmp_path / "data", {"seed": 0}, counting(calls)) for _ in range(2)
        ]
        assert sorted(future.result() for future in asked) == [False, True]
    assert len(calls) == 1


def test_fewer_than_one_process_is_refused():
    with pytest.raises(ValueError, match="workers is 0; it must be 1 or more"):
        mini_store.run_jobs(abs, [1], "", workers=0)


def test_results_come_in_the_order_of_the_jobs():
    assert mini_store.run_jobs(abs, [-3, 1, -2], "", workers=None) == [3, 1, 2]
    assert mini_store.run_jobs(abs, [], "", workers=1) == []
