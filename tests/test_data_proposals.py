"""Boxes of an external detector: csv -> keyframes -> clips -> batches."""

import gzip
import logging

import numpy as np
import pytest
import torch
from media import numbered_frames, write_video

from evad.data.annotations.proposals import ProposalFiles, read_proposals
from evad.data.clips.ava import AVADataModule
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.structures import Keyframe

FPS = 10
GOOD = ["a,902,0.1,0.2,0.5,0.8,,0.95", "a,902.0,0.1,0.2,0.5,0.8,12,0.97", "a,0903,0,0,1,1,,0.7"]


def write(path, lines):
    path.write_text("\n".join(lines))
    return path


def keyframe(video, timestamp, boxes):
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Keyframe(video, timestamp, 0.0, boxes, np.zeros((len(boxes), 3), np.float32), np.arange(len(boxes)))


def attach(tmp_path, split, keyframes, lines, **options):
    write(tmp_path / "boxes.csv", lines)
    files = ProposalFiles(**{"train": "boxes.csv", "val": "boxes.csv", **options})
    return files.attach(split, keyframes, lambda name: tmp_path / name)


def test_repeated_box_is_one_with_its_highest_score(tmp_path):
    rows = read_proposals(write(tmp_path / "boxes.csv", GOOD))
    assert rows.to_numpy().tolist() == [["a", 902, 0.1, 0.2, 0.5, 0.8, 0.97], ["a", 903, 0, 0, 1, 1, 0.7]]


def test_gzipped_file_reads_the_same(tmp_path):
    plain = read_proposals(write(tmp_path / "boxes.csv", GOOD))
    with gzip.open(tmp_path / "boxes.csv.gz", "wt") as file:
        file.write("\n".join(GOOD))
    assert plain.equals(read_proposals(tmp_path / "boxes.csv.gz"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,902,0.1,0.2,0.5,0.8,0.9", "line 5: 7 columns, expected 8"),
        ("a,902,0.1,0.2,0.5,left,,0.9", "line 5: y2 'left' is not a number"),
        ("a,902,0.1,0.2,0.5,nan,,0.9", "line 5: y2 is nan"),
        ("a,902,10,20,50,80,,0.9", r"line 5: .* has a box outside \[0, 1\]; boxes are x1,y1,x2,y2 as fractions"),
        ("a,902,0.5,0.2,0.1,0.8,,0.9", "line 5: .* has an inverted box"),
        ("a,902,0.1,0.2,0.5,0.8,,95", r"line 5: .* has a score \(8th column\) outside \[0, 1\]"),
    ],
)
def test_bad_line_is_an_error_with_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "boxes.csv", [*GOOD, "", line])  # the blank line counts
    with pytest.raises(ValueError, match=rf"boxes\.csv, {message}"):
        read_proposals(path)


def test_rounding_over_the_edge_is_cut_off(tmp_path):
    rows = read_proposals(write(tmp_path / "boxes.csv", ["a,902,-0.004,0,1.002,1,,0.9"]))
    assert rows.to_numpy()[0, 2:6].tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": "a.csv"}, r"data\.proposals\.train is given without data\.proposals\.val"),
        ({"threshold": 80}, r"data\.proposals\.threshold is 80"),
        ({"match_iou": 0.3}, r"data\.proposals\.match_iou is 0\.3; choose 0\.5 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_errors(options, message):
    with pytest.raises(ValueError, match=message):
        ProposalFiles(**options)


def test_without_files_keyframes_have_no_proposals():
    (plain,) = ProposalFiles().attach("val", [keyframe("a", "902", [])], lambda name: None)
    assert plain.proposals is None
    assert plain.proposal_scores is None


def test_evaluation_takes_confident_boxes_alone_best_first(tmp_path, caplog):
    lines = ["a,902,0,0,0.5,1,,0.85", "a,902,0,0,0.6,1,,0.95", "a,902,0,0,0.7,1,,0.5", "z,902,0,0,1,1,,0.9"]
    with caplog.at_level(logging.INFO):
        found, empty = attach(tmp_path, "val", [keyframe("a", "902", [[0, 0, 1, 1]]), keyframe("a", "903", [])], lines)
    assert found.proposals.tolist() == [[0, 0, 0.6, 1], [0, 0, 0.5, 1]]
    assert found.proposal_scores.tolist() == [0.95, 0.85]
    assert found.boxes.tolist() == [[0, 0, 1, 1]]
    assert empty.proposals.shape == (0, 4)
    text = caplog.text
    assert "1 detected boxes are left out: score below 0.8" in text
    assert "1 detected boxes are left out: frame is not a keyframe" in text
    assert "1 keyframes have no box, so no person is found there" in text


def test_threshold_counts_as_confident(tmp_path):
    (found,) = attach(tmp_path, "val", [keyframe("a", "902", [])], ["a,902,0,0,1,1,,0.6"], threshold=0.6)
    assert found.proposal_scores.tolist() == [0.6]


def test_training_joins_annotated_boxes_with_detected_ones_that_match(tmp_path, caplog):
    truth = keyframe("a", "902", [[0, 0, 0.5, 1], [0.5, 0, 1, 1]])
    lines = ["a,902,0,0,0.5,0.95,,0.9", "a,902,0.5,0,1,0.6,,0.99", "a,902,0.3,0,0.7,1,,0.9"]  # IoU 0.95, 0.6, 1/3
    with caplog.at_level(logging.INFO):
        (found,) = attach(tmp_path, "train", [truth], lines)
    assert found.proposals.tolist() == [[0, 0, 0.5, 1], [0.5, 0, 1, 1], [0, 0, 0.5, 0.95]]
    assert found.proposal_scores.tolist() == [1, 1, 0.9]
    assert "2 detected boxes are left out: IoU with every annotated box below 0.9" in caplog.text
    (looser,) = attach(tmp_path, "train", [truth], lines, match_iou=0.6)
    assert len(looser.proposals) == 4


def test_training_without_a_file_takes_annotated_boxes(tmp_path):
    truth, nobody = attach(
        tmp_path, "train", [keyframe("a", "902", [[0, 0, 1, 1]]), keyframe("a", "903", [])], GOOD, train=None
    )
    assert truth.proposals.tolist() == [[0, 0, 1, 1]]
    assert truth.proposal_scores.tolist() == [1]
    assert nobody.proposals.shape == (0, 4)


@pytest.fixture
def root(tmp_path):
    """AVA v2.2 with two videos and a csv of detected boxes."""
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    write(annotations / "ava_train_v2.2.csv", ["a,902,0.25,0,0.5,1,1,0", "a,903,0.5,0.5,1,1,3,0"])
    write(annotations / "ava_val_v2.2.csv", ["c,902,0,0,0.5,0.5,1,0", "c,903,0,0,0.5,0.5,1,0"])
    write(annotations / "ava_val_excluded_timestamps_v2.2.csv", [])
    labels = 'item {\n  name: "run"\n  id: 1\n}\nitem {\n  name: "wave"\n  id: 3\n}\n'
    write(annotations / "ava_action_list_v2.2_for_activitynet_2019.pbtxt", [labels])
    write(annotations / "train.csv", ["a,902,0.25,0,0.5,0.95,,0.9"])
    write(annotations / "val.csv", ["c,902,0.25,0.5,0.75,1,,0.9", "c,902,0,0,0.5,0.5,,0.85"])
    for video in "ac":
        write_video(tmp_path / "videos" / f"{video}.mp4", numbered_frames(5 * FPS), FPS)
    return tmp_path


def loaders(root, flip=0.0, **options):
    data = AVADataModule(
        root,
        sampler=ClipSampler(4, 5, annotated_fps=FPS),
        train_transform=VideoTransform(32, flip=flip),
        val_transform=VideoTransform(32),
        batch_size=2,
        num_workers=0,
        proposals=ProposalFiles(**options),
    )
    data.setup("fit")
    return data


def test_batches_carry_the_boxes_resized_and_cut_like_the_annotated_ones(root):
    (batch,) = loaders(root, train="train.csv", val="val.csv").val_dataloader()
    assert batch.sizes.tolist() == [[32, 40]] * 2
    assert batch.proposals[0].boxes.tolist() == [[10, 16, 30, 31], [0, 0, 20, 16]]
    assert batch.proposals[0].scores.tolist() == pytest.approx([0.9, 0.85])
    assert batch.proposals[1].boxes.shape == (0, 4)
    assert batch.targets[0].boxes.tolist() == [[0, 0, 20, 16]]


def test_boxes_are_mirrored_with_the_clip(root):
    plain, mirrored = (loaders(root, flip, val="val.csv", train="train.csv").train_dataset[0] for flip in (0.0, 1.0))
    assert torch.equal(plain.frames.flip(-1), mirrored.frames)
    assert plain.proposals.boxes.tolist()[0] == [10, 0, 20, 31]  # of 40 pixels
    assert mirrored.proposals.boxes.tolist()[0] == [20, 0, 30, 31]
    assert torch.equal(mirrored.proposals.boxes[:1], mirrored.target.boxes)


def test_batches_without_a_detector_have_none(root):
    (batch,) = loaders(root).val_dataloader()
    assert batch.proposals is None
    assert batch.to("cpu").proposals is None


def test_moving_a_batch_moves_its_boxes(root):
    (batch,) = loaders(root, val="val.csv").val_dataloader()
    assert batch.to(torch.float64).proposals[0].scores.dtype == torch.float64


def test_missing_file_is_an_error_that_names_it(root):
    with pytest.raises(FileNotFoundError, match=r"boxes\.csv: no such annotation file"):
        loaders(root, val="boxes.csv")
