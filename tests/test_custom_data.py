"""Own videos and a table: dialects, units, splits, classes, and a training step with nothing but them."""

import csv
import logging
from functools import partial

import lightning as L
import numpy as np
import pytest
import torch
from media import write_frames
from own_data import (
    FPS,
    HEADER,
    HEIGHT,
    VIDEOS,
    WIDTH,
    clean_rows,
    corners,
    make_frames,
    module,
    write_csv,
    write_set,
    write_videos,
)

from evad.config import load_config
from evad.data.annotations.table import read_table
from evad.data.check.quick import quick_check
from evad.data.video.errors import VideoError
from evad.data.video.images import check_pattern, matching_frames
from evad.data.video.readers import open_video
from evad.data.video.sources import VideoFiles
from evad.structures import Detections
from evad.training.build import build_datamodule, build_module


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def make(tmp_path, videos):
    return partial(write_set, tmp_path, videos)


def ready(root, boxes="pixels", **settings):
    data = module(root, boxes, **settings)
    data.setup("fit")
    return data


def by_instant(data):
    keyframes = [*data.train_dataset.keyframes, *data.val_dataset.keyframes]
    return {(keyframe.video, keyframe.timestamp): keyframe for keyframe in keyframes}


def test_pixels_become_fractions_and_seconds_become_ticks(make):
    keyframe = by_instant(ready(make()))["b", "1.0"]
    expected = np.array([corners(1, 0, 12), corners(1, 1, 12)]) / [WIDTH, HEIGHT, WIDTH, HEIGHT]
    np.testing.assert_array_equal(keyframe.boxes, expected)
    assert keyframe.position == 30
    assert keyframe.labels.tolist() == [[0, 1], [1, 0]]  # jump, walk: by name
    assert keyframe.actors.tolist() == [0, 1]


def test_fractions_and_frames_give_the_same_keyframes(make):
    expected = by_instant(ready(make()))
    rows = [
        [video, round(second * FPS), x1 / WIDTH, y1 / HEIGHT, x2 / WIDTH, y2 / HEIGHT, *rest]
        for video, second, x1, y1, x2, y2, *rest in clean_rows()
    ]
    found = by_instant(ready(make(rows, ["video", "frame", *HEADER[2:]]), "fractions"))
    for (video, timestamp), keyframe in expected.items():
        other = found[video, str(round(float(timestamp) * FPS))]
        assert other.position == keyframe.position
        np.testing.assert_allclose(other.boxes, keyframe.boxes, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(other.labels, keyframe.labels)


@pytest.mark.parametrize(("unit", "first"), [("time", 1), ("time", 902), ("frame", 1)])
def test_times_may_begin_anywhere(make, unit, first):
    expected = by_instant(ready(make()))
    scale = FPS if unit == "frame" else 1
    rows = [[video, round(second * scale, 3) + first, *rest] for video, second, *rest in clean_rows()]
    found = by_instant(ready(make(rows, ["video", unit, *HEADER[2:]]), first_time=first))
    assert sorted(k.position for k in found.values()) == sorted(k.position for k in expected.values())


def test_several_labels_of_an_actor_are_one_box(make):
    rows = clean_rows()
    rows.insert(1, [*rows[0][:6], "wave", 0])
    keyframe = by_instant(ready(make(rows)))["a", "0.5"]
    assert keyframe.labels.tolist() == [[0, 1, 1], [1, 0, 0]]


def test_line_without_box_and_label_is_an_instant_with_nobody(make):
    keyframe = by_instant(ready(make([*clean_rows(), ["a", 2.5, "", "", "", "", "", ""]])))["a", "2.5"]
    assert keyframe.boxes.shape == (0, 4)
    assert keyframe.labels.shape == (0, 2)


def test_actor_is_optional_and_may_be_a_name(make):
    without = by_instant(ready(make([row[:7] for row in clean_rows()], HEADER[:7])))
    assert without["a", "0.5"].actors.tolist() == [-1, -1]
    named = by_instant(ready(make([[*row[:7], f"cat {row[7]}"] for row in clean_rows()])))
    assert named["a", "0.5"].actors.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("style", "words"),
    [
        ({}, "separated by commas, header"),
        ({"delimiter": "\t"}, "separated by tabs, header"),
        ({"delimiter": ";"}, "separated by semicolons, header"),
        ({"delimiter": " "}, "separated by spaces, header"),
        ({"quoting": csv.QUOTE_ALL}, "separated by commas with quotes"),
        ({"quoting": csv.QUOTE_ALL, "quotechar": "'"}, "separated by commas with quotes"),
        ({"delimiter": " ", "quoting": csv.QUOTE_NONNUMERIC}, "separated by spaces with quotes"),
    ],
)
def test_separators_and_quotes_are_found_and_named(make, style, words):
    expected = read_table(make() / "annotations.csv").rows
    table = read_table(make(**style) / "annotations.csv")
    assert words in table.findings[0].message
    assert table.rows.equals(expected)


def test_labels_may_hold_other_separators(make):
    rows = [[*row[:6], "take, then put; away", 0] for row in clean_rows()]
    for delimiter in (",", ";", "\t"):
        table = read_table(make(rows, delimiter=delimiter) / "annotations.csv")
        assert set(table.rows["label"]) == {"take, then put; away"}


def test_usual_names_of_columns_are_understood_and_reported(make):
    header = ["video_id", "second", "xmin", "ymin", "xmax", "ymax", "action", "score"]
    table = read_table(make(header=header) / "annotations.csv")
    assert "xmin is x1" in table.findings[0].message
    assert "not read: score" in table.findings[0].message
    assert table.rows["x2"].tolist() == [float(row[4]) for row in clean_rows()]


def test_video_may_be_given_with_its_ending(make):
    rows = [[f"{video}.mp4", *rest] for video, *rest in clean_rows()]
    assert set(by_instant(ready(make(rows)))) == set(by_instant(ready(make())))


def test_val_fraction_draws_whole_videos_by_seed(make):
    def validated(**settings):
        data = ready(make(), **settings)
        train = {keyframe.video for keyframe in data.train_dataset.keyframes}
        val = {keyframe.video for keyframe in data.val_dataset.keyframes}
        assert not train & val
        assert train | val == set(VIDEOS)
        return val

    assert len(validated()) == 1
    assert len(validated(val_fraction=0.4)) == 2
    assert len(validated(val_fraction=0.99)) == 4
    assert validated(split_seed=3) == validated(split_seed=3)
    assert len({tuple(validated(split_seed=seed)) for seed in range(8)}) > 1


def test_split_column_decides(make):
    rows = [[*row, "val" if row[0] in "bd" else "training"] for row in clean_rows()]
    data = ready(make(rows, [*HEADER, "split"]))
    assert {keyframe.video for keyframe in data.val_dataset.keyframes} == {"b", "d"}


def test_second_table_is_the_validation(make):
    make([row for row in clean_rows() if row[0] == "e"], name="val.csv")
    root = make([row for row in clean_rows() if row[0] != "e"], name="train.csv")
    data = ready(root, annotations="train.csv", val_annotations="val.csv")
    assert {keyframe.video for keyframe in data.val_dataset.keyframes} == {"e"}


def test_given_label_list_sets_ids_and_allows_numbers(make):
    root = make([[*row[:6], {"walk": 3, "jump": 1}[row[6]], row[7]] for row in clean_rows()])
    (root / "labels.txt").write_text("jump\nsit\nwalk\n")
    data = ready(root)
    assert data.class_names == {1: "jump", 2: "sit", 3: "walk"}
    assert by_instant(data)["a", "0.5"].labels.tolist() == [[0, 0, 1], [1, 0, 0]]
    assert module(root).count_classes() == 3


def test_classes_are_counted_before_setup_and_the_tables_then_not_read_again(make, monkeypatch):
    data = module(make())
    assert data.count_classes() == 2
    assert module(make(), num_classes=5).count_classes() == 5  # given: the files are not asked
    monkeypatch.setattr("evad.data.clips.custom.read_table", None)
    data.setup("fit")
    assert data.num_classes == 2


def test_numeric_labels_without_a_list_keep_their_numbers(make):
    data = ready(make([[*row[:6], {"walk": 7, "jump": 0}[row[6]], row[7]] for row in clean_rows()]))
    assert data.class_names == {0: "0", 7: "7"}
    assert by_instant(data)["a", "0.5"].labels.tolist() == [[0, 1], [1, 0]]


def test_ava_folder_with_frames_and_own_conventions(tmp_path):
    def line(row):
        video, second, *box, label, actor = row
        return [
            video,
            second + 1,
            *(np.array(box) / [WIDTH, HEIGHT, WIDTH, HEIGHT]),
            {"walk": 2, "jump": 1}[label],
            actor,
        ]

    lines = [line(row) for row in clean_rows()]
    for name, wanted in (("train", "abcd"), ("val", "e")):
        path = tmp_path / "annotations" / f"{name}.csv"
        write_csv(path, [row for row in lines if row[0] in wanted], header=None, delimiter="\t")
    (tmp_path / "annotations" / "classes.pbtxt").write_text("item { name: 'jump' id: 1 }\nitem { name: 'walk' id: 2 }")
    for number, video in enumerate(VIDEOS):
        write_frames(tmp_path / "frames" / video, make_frames(number), "img_%05d.png")
        write_frames(tmp_path / "frames" / video, make_frames(number)[:3], "mask_%05d.png")
    overrides = ["data=custom_ava", f"data.root={tmp_path}", "data.first_time=1", f"data.frames_per_second={FPS}"]
    cfg = load_config([*overrides, "data.frame_pattern='{video}/img_%05d.png'", "data.num_workers=0"])
    assert cfg.model.num_classes is None  # no file is opened while a configuration is composed
    data = build_datamodule(cfg)
    assert data.count_classes() == 2
    data.setup("fit")
    assert data.class_names == {1: "jump", 2: "walk"}
    np.testing.assert_array_equal(data.val_dataset.keyframe_image(1), make_frames(4)[FPS])
    assert len(data.train_dataset) == 12


def test_frame_pattern_names_a_gap_and_a_wrong_pattern(tmp_path):
    write_frames(tmp_path / "v", make_frames(0)[:4], "img_%05d.png")
    assert list(matching_frames(str(tmp_path), "{video}/img_%05d.png", "v")) == [
        f"{tmp_path}/v/img_0000{number}.png" for number in (1, 2, 3, 4)
    ]
    write_frames(tmp_path / "w", make_frames(0)[:4], "img_%05d.png")
    (tmp_path / "w" / "img_00002.png").unlink()
    with pytest.raises(VideoError, match=r"video w: frame 2 of .*/\{video\}/img_%05d.png is missing"):
        matching_frames(str(tmp_path), "{video}/img_%05d.png", "w")
    for pattern in ("img.png", "{video}/img.png", "img_%05d.png", "%d/{video}.png", "{video}/%d_%d.png"):
        with pytest.raises(ValueError, match=r"frame_pattern .* must contain \{video\} and, .* one frame number"):
            check_pattern(pattern)


def test_frame_pattern_that_matches_nothing_says_what_is_there(tmp_path):
    write_csv(tmp_path / "annotations.csv", clean_rows())
    for video in VIDEOS[:4]:
        write_frames(tmp_path / "frames" / video, make_frames(0)[:4], "frame_%03d.png")
    with pytest.raises(ValueError, match=r"5 of 5 annotated videos \(a, b, c, d, e\) are not in") as error:
        ready(tmp_path, frame_pattern="{video}/img_%05d.jpg")
    text = str(error.value)
    assert f"are not in {tmp_path}/frames: no file matches data.frame_pattern '{{video}}/img_%05d.jpg'" in text
    assert f"expected {tmp_path}/frames/a/img_%05d.jpg (its folder has" in text
    assert "(its folder has frame_001.png, frame_002.png, frame_003.png, ...)" in text
    with pytest.raises(ValueError, match=r"1 of 5 annotated videos \(e\) .*frames/e/frame_%d.png \(no such folder\)"):
        ready(tmp_path, frame_pattern="{video}/frame_%d.png")


def test_validation_alone_opens_its_videos_alone(make, monkeypatch):
    opened = []
    monkeypatch.setattr(
        VideoFiles, "__call__", lambda self, video: opened.append(video) or open_video(self.paths[video])
    )
    data = module(make([[*row, "val" if row[0] in "bd" else "train"] for row in clean_rows()], [*HEADER, "split"]))
    data.setup("validate")
    assert sorted(opened) == ["b", "d"]
    assert len(data.val_dataset) == 6
    data.setup("fit")
    assert sorted(opened) == VIDEOS
    assert (len(data.train_dataset), len(data.val_dataset)) == (9, 6)


def test_findings_are_reported_once(make, caplog):
    rows = [*clean_rows(), clean_rows()[0]]
    data = module(make(rows))
    with caplog.at_level(logging.INFO):
        data.report(quick_check(data))
        data.setup("fit")
    assert caplog.text.count("the line repeats another line and is used once") == 1
    assert caplog.text.count("2 classes, from the annotated labels") == 1
    assert "duplicate-line" in {finding.kind for finding in data.findings}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({3: "left"}, r"annotations.csv, line 3: video a, 0.5.*is not a number"),
        ({3: ""}, r"line 3: .*is not a number"),
        ({4: 2}, r"line 3: .*inverted \(x2 < x1"),
        ({2: 85, 4: 90}, r"line 3: .*outside the frame"),
        ({1: 4.0}, r"line 3: .*beyond the end of the video \(a has 36 frames, 3 s\)"),
        ({1: -1}, r"line 3: .*before 0, the start of the videos"),
        ({0: "nothing"}, r"1 of 6 annotated videos \(nothing\) are not in"),
    ],
)
def test_bad_line_is_named(make, change, message):
    rows = clean_rows()
    for column, value in change.items():
        rows[1][column] = value
    with pytest.raises(ValueError, match=message):
        ready(make(rows))


def test_unfit_line_widths_and_unclosed_quotes_are_named(make):
    root = make()
    lines = (root / "annotations.csv").read_text().splitlines()
    lines[4] += ",7"
    lines[6] = '"' + lines[6]
    (root / "annotations.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"line 5: 9 columns .*expected 8 columns.*\(1 more like it\)"):
        ready(root)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (["video", "time", "x1", "y1", "w", "h", "label", "actor"], "line 1: the header has no x2, y2"),
        (["video", "when", "x1", "y1", "x2", "y2", "label", "actor"], "the header has no time or frame"),
        (["video", "time", "x1", "y1", "x2", "xmin", "label", "actor"], "'x1' and 'xmin' are both x1"),
        (["video", "time", "x1", "y1", "x2", "y2", "label", "frame"], "has a time and a frame column"),
    ],
)
def test_unfit_header_is_named(make, header, message):
    with pytest.raises(ValueError, match=message):
        ready(make(header=header))


def test_wrong_settings_are_named(make):
    root = make()
    with pytest.raises(ValueError, match=r"data.boxes is 'pixel'; choose pixels or fractions"):
        module(root, "pixel")
    with pytest.raises(ValueError, match=r"num_classes is 5, but there are 2 classes .*set data.num_classes=2"):
        ready(root, num_classes=5)
    with pytest.raises(ValueError, match="val_fraction is 1"):
        ready(root, val_fraction=1)
    with pytest.raises(FileNotFoundError, match=r"names.txt: no such label file"):
        ready(root, labels="names.txt")
    with pytest.raises(FileNotFoundError, match="no such annotation file"):
        ready(root, annotations="a.csv")
    with pytest.raises(ValueError, match=r"1 videos cannot be divided"):
        ready(make([row for row in clean_rows() if row[0] == "a"]))


def test_five_videos_and_a_table_train_and_validate(make):
    overrides = ["experiment=custom_mini", f"data.root={make()}", "data.num_workers=0", "data.batch_size=4"]
    cfg = load_config(overrides)
    data = build_datamodule(cfg)
    cfg.data.num_classes = data.count_classes()
    assert cfg.model.num_classes == 2
    model = build_module(cfg)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=1, logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    assert np.isfinite(float(trainer.callback_metrics["train/loss"]))
    assert "val/mAP" in trainer.callback_metrics


def test_zero_map_is_explained_once_from_what_is_known(make, caplog, monkeypatch):
    rows = [[*row, "val" if row[0] == "e" else "train"] for row in clean_rows() if row[0] == "e" or row[6] == "walk"]
    cfg = load_config(["experiment=custom_mini", f"data.root={make(rows, [*HEADER, 'split'])}", "data.num_workers=0"])
    data = build_datamodule(cfg)
    cfg.data.num_classes = data.count_classes()
    monkeypatch.setattr("evad.data.clips.custom.read_table", None)  # the annotations are not read again
    model = build_module(cfg)

    def detect(batch):
        nothing = torch.zeros(0)
        return [Detections(nothing.reshape(0, 4), nothing, nothing.reshape(0, 2), size) for size in batch.sizes]

    monkeypatch.setattr(model, "detect", detect)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, logger=False, num_sanity_val_steps=0,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(model, data)
    assert caplog.text.count("mAP is 0. The usual causes") == 1
    assert "no detections; is the person-score threshold above every score" in caplog.text
    assert "applies: classes without training examples: 1 of 2 classes" in caplog.text
    assert "1 optimizer steps are few" in caplog.text
    caplog.clear()
    trainer.validate(model, data, verbose=False)
    assert caplog.text.count("mAP is 0. The usual causes") == 1
    assert "optimizer steps" not in caplog.text
