"""The validator: clean data is sound, and each usual mistake is named by its kind."""

import json
import subprocess
import sys
from functools import partial

import numpy as np
import pytest
from own_data import FPS, HEADER, HEIGHT, VIDEOS, WIDTH, clean_rows, module, write_csv, write_set, write_videos
from PIL import Image
from rich.console import Console

from evad.data.annotations.findings import Finding, errors, require_sound
from evad.data.annotations.keyframes import VideoInfo
from evad.data.annotations.proposals import ProposalFiles
from evad.data.annotations.videos import frame_count_findings
from evad.data.check.frames import picture_contrasts
from evad.data.check.full import full_check
from evad.data.check.quick import explain_zero_map, quick_check
from evad.data.check.report import draw_sheet, print_report
from evad.data.clips.sampling import ClipSampler
from evad.data.mini.ava import mini_folder
from evad.data.mini.datamodules import MiniDataModule


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return write_videos(tmp_path_factory.mktemp("videos"))


@pytest.fixture
def make(tmp_path, videos):
    return partial(write_set, tmp_path, videos)


SIZE = np.array([WIDTH, HEIGHT] * 2)


def check(root, boxes="pixels", **settings):
    return full_check(module(root, boxes, **settings))[0]


def kinds(findings, *severities):
    return {finding.kind for finding in findings if finding.severity in (severities or ("error",))}


def the(findings, kind):
    (finding,) = [finding for finding in findings if finding.kind == kind]
    return finding


def with_boxes(change):
    """Clean rows with each pixel box replaced by `change(box)`."""
    return [[*row[:2], *change(np.array(row[2:6], float)).tolist(), *row[6:]] for row in clean_rows()]


def fractions(box):
    return box / SIZE


def swapped(box):
    return box[[1, 0, 3, 2]]


def test_clean_data_is_sound(make):
    for unit, rows in (("pixels", clean_rows()), ("fractions", with_boxes(fractions))):
        report, examples = full_check(module(make(rows), unit))
        assert kinds(report.findings, "error", "warning") == set()
        assert report.sound
        assert len(examples) == len(VIDEOS) * 3
    assert (report.splits["train"].videos, report.splits["val"].videos) == (4, 1)
    assert (report.splits["train"].keyframes, report.splits["train"].boxes) == (12, 24)
    assert [(c.name, c.train, c.val) for c in report.classes] == [("jump", 12, 3), ("walk", 12, 3)]


def test_swapped_x_and_y_in_pixels(make):
    findings = check(make(with_boxes(swapped))).findings
    assert "boxes-swapped" in kinds(findings)
    assert "with x and y swapped every box fits" in the(findings, "boxes-swapped").message


def test_swapped_x_and_y_in_fractions(make):
    findings = check(make(with_boxes(lambda box: swapped(fractions(box)))), "fractions").findings
    assert "boxes-swapped" in kinds(findings)


def test_labels_from_0_where_the_list_counts_from_1(make):
    root = make([[*row[:6], {"walk": 0, "jump": 1}[row[6]], row[7]] for row in clean_rows()])
    (root / "labels.txt").write_text("walk\njump\n")
    finding = the(check(root).findings, "labels-from-0")
    assert (finding.severity, finding.count) == ("error", 15)
    assert "line 2: video a" in finding.examples[0]


def test_labels_from_1_where_the_list_counts_from_0(make):
    root = make([[*row[:6], {"walk": 1, "jump": 2}[row[6]], row[7]] for row in clean_rows()])
    (root / "labels.txt").write_text("0 walk\n1 jump\n")
    assert "labels-from-1" in kinds(check(root).findings)


def test_misspelt_label_gets_a_suggestion(make):
    rows = clean_rows()
    rows[3][6] = "jmup"
    root = make(rows)
    assert kinds(check(root).findings) == set()  # without a list it is a class of its own
    (root / "labels.txt").write_text("walk\njump\n")
    finding = the(check(root).findings, "unknown-label")
    assert "line 5" in finding.examples[0]
    assert "did you mean 'jump' for 'jmup'?" in finding.remedy


def test_box_without_a_label_is_an_error_without_a_label_list_too(make):
    rows = clean_rows()
    rows[4][6] = ""
    finding = the(quick_check(module(make(rows), labels=None)), "unknown-label")
    assert (finding.severity, finding.count, finding.message) == ("error", 1, "the box has no label")
    assert "annotations.csv" in finding.examples[0]


def test_pixels_as_fractions(make):
    report = check(make(), "fractions")
    assert kinds(report.findings) == {"pixels-as-fractions"}
    assert "set data.boxes=pixels" in the(report.findings, "pixels-as-fractions").remedy


def test_fractions_as_pixels(make):
    report = check(make(with_boxes(fractions)), "pixels")
    assert kinds(report.findings) == {"fractions-as-pixels"}
    assert "set data.boxes=fractions" in the(report.findings, "fractions-as-pixels").remedy


def test_frames_as_seconds(make):
    rows = [[row[0], round(row[1] * FPS), *row[2:]] for row in clean_rows()]
    assert kinds(check(make(rows)).findings) == {"frames-as-seconds"}


def test_seconds_as_frames(make):
    rows = [[row[0], second, *row[2:]] for second, row in zip([0, 1, 2] * 10, clean_rows())]
    header = ["video", "frame", *HEADER[2:]]
    assert "seconds-as-frames" in kinds(check(make(rows, header)).findings, "warning")
    assert "frame-not-whole" in kinds(check(make(clean_rows(), header)).findings)


def test_times_that_begin_elsewhere(make):
    rows = [[row[0], row[1] + 902, *row[2:]] for row in clean_rows()]
    finding = the(check(make(rows)).findings, "time-origin")
    assert finding.severity == "error"
    assert "times begin at 902.5, the videos at 0" in finding.message
    rows = [[row[0], row[1] + 1, *row[2:]] for row in clean_rows()]
    assert "time-from-1" in kinds(check(make(rows)).findings, "warning")


def test_missing_and_undecodable_videos(make):
    root = make()
    (root / "videos" / "b.mp4").unlink()
    (root / "videos" / "c.mp4").unlink()
    (root / "videos" / "c.mp4").write_bytes(b"no video" * 100)
    report = check(root)
    assert kinds(report.findings) == {"video-missing", "video-undecodable"}
    assert "1 of 4 train videos (b) are not in" in the(report.findings, "video-missing").message
    assert "video c: " in the(report.findings, "video-undecodable").examples[0]


@pytest.mark.parametrize(("shift", "kind"), [(0, "leak-keyframe"), (0.25, "leak-video")])
def test_video_in_both_splits(make, shift, kind):
    rows = [[*row, "val" if row[0] == "e" else "train"] for row in clean_rows()]
    rows.append([rows[0][0], rows[0][1] + shift, *rows[0][2:8], "val"])
    findings = check(make(rows, [*HEADER, "split"])).findings
    assert kind in kinds(findings, "error", "warning")
    assert ("leak-keyframe" in kinds(findings)) == (shift == 0)


def test_class_without_examples(make):
    root = make()
    (root / "labels.txt").write_text("walk\njump\nswim\n")
    finding = the(check(root).findings, "class-empty-train")
    assert finding.severity == "warning"
    assert "swim (id 3)" in finding.message


def test_degenerate_and_overhanging_boxes(make):
    rows = clean_rows()
    rows[0][4] = rows[0][2]
    rows[1][4] = WIDTH + 8
    findings = check(make(rows)).findings
    assert "line 2" in the(findings, "box-degenerate").examples[0]
    assert "line 3" in the(findings, "box-overhang").examples[0]


def test_other_orders_of_box_columns(make):
    rows = with_boxes(lambda box: box[[0, 2, 1, 3]])
    assert {"box-column-order", "box-inverted"} & kinds(check(make(rows)).findings)
    rows = with_boxes(lambda box: np.concatenate([box[:2], box[2:] - box[:2]]))
    assert "box-width-height" in kinds(check(make(rows)).findings)


def test_boxes_drawn_at_another_size(make):
    assert "box-scale" in kinds(check(make(with_boxes(lambda box: 2.5 * box))).findings)


def test_repeated_lines_and_similar_names(make):
    rows = [*clean_rows(), clean_rows()[0]]
    rows[2][6] = "Walk"
    findings = check(make(rows)).findings
    assert the(findings, "duplicate-line").count == 1
    assert the(findings, "similar-labels").examples == ("Walk / walk",)


def test_several_mistakes_are_all_reported(make):
    rows = clean_rows()
    rows[0][2], rows[5][1], rows[7][0] = "left", 99, "nothing"
    report = check(make(rows))
    assert {"not-a-number", "time-beyond-end", "video-missing"} == kinds(report.findings)


def test_quick_check_needs_no_frames(make):
    root = make([[*row[:6], 0, row[7]] for row in clean_rows()])
    (root / "labels.txt").write_text("walk\njump\n")
    for path in (root / "videos").iterdir():
        path.unlink()
        path.write_bytes(b"")
    findings = quick_check(module(root))
    assert kinds(findings) == {"labels-from-0"}
    with pytest.raises(ValueError, match=r"line 2: video a.*labels start at 0"):
        require_sound(findings)
    assert kinds(quick_check(module(root / "nowhere"))) == {"unreadable"}


def test_explanation_of_a_zero_map_names_what_applies(make):
    rows = [[*row[:6], {"walk": 0, "jump": 1}[row[6]], row[7]] for row in clean_rows()]
    root = make(rows)
    (root / "labels.txt").write_text("walk\njump\nswim\n")
    text = explain_zero_map(quick_check(module(root)), 40, 7, steps=12)
    assert "what was found: 7 persons, but none with the right action; do the action ids start at 1" in text
    assert "applies: labels that are not classes, or that start at 0 instead of 1: " in text
    assert "applies: classes without training examples: 2 of 3 classes" in text
    assert "may apply: 12 optimizer steps are few" in text
    assert "no sign of: boxes in pixels instead of fractions" in text
    clean = explain_zero_map(quick_check(module(make(), labels=None)), 40, 0, steps=5000)
    assert "no detected box overlaps an annotated person enough; are the annotated boxes x before y" in clean
    assert "applies: classes without training examples: 1 of 3 classes" in clean
    assert "few" not in clean
    assert "no detections; is the person-score threshold above every score" in explain_zero_map([], 0, 0)


def test_ava_layout_is_checked_too(tmp_path):
    def data():
        return MiniDataModule(tmp_path, ClipSampler(8, 2, 8), train_clips=6, val_clips=3, num_workers=0)

    report, examples = full_check(data())
    assert errors(report.findings) == []
    assert len(examples) == 9
    train = mini_folder(tmp_path, 6, 3) / "annotations" / "train.csv"
    lines = [line.split(",") for line in train.read_text().splitlines()]
    write_csv(train, [[*row[:2], *(float(v) * 64 for v in row[2:6]), *row[6:]] for row in lines], header=None)
    assert "pixels-as-fractions" in kinds(quick_check(data()))
    write_csv(train, [[*row[:6], int(row[6]) - 1, row[7]] for row in lines], header=None)
    assert "labels-from-0" in kinds(quick_check(data()), "error", "warning")
    write_csv(train, [[row[0], "16", *row[2:]] for row in lines], header=None)
    assert "frames-as-seconds" in kinds(full_check(data())[0].findings)


def test_detected_boxes_are_compared_with_the_keyframes(tmp_path):
    folder = mini_folder(tmp_path, 6, 3)

    def data(**files):
        return MiniDataModule(
            tmp_path,
            ClipSampler(8, 2, 8),
            train_clips=6,
            val_clips=3,
            num_workers=0,
            proposals=ProposalFiles(val="boxes.csv", **files),
        )

    def write(lines, name="boxes.csv"):
        (folder / "annotations" / name).write_text("\n".join(lines))

    def found(**files):
        return [finding for finding in quick_check(data(**files)) if finding.kind.startswith("proposals")]

    (finding,) = found()
    assert (finding.kind, finding.severity) == ("proposals-unreadable", "error")
    assert "boxes.csv" in finding.message
    keyframes = {
        split: sorted({tuple(line.split(",")[:2]) for line in (folder / f"annotations/{split}.csv").open()})
        for split in ("train", "val")
    }
    every = {split: [f"{video},{time},0.1,0.1,0.5,0.5,,0.9" for video, time in keyframes[split]] for split in keyframes}
    write(every["val"])
    assert found() == []
    write([*every["val"][:-1], every["val"][-1].replace("0.9", "0.7")])
    (finding,) = found()
    assert (finding.kind, finding.severity, finding.count) == ("proposals-none", "warning", 1)
    assert keyframes["val"][-1][0] in str(finding)
    assert found(threshold=0.7) == []
    write([line.replace(",", ".mp4,", 1) for line in every["val"]])
    (finding,) = found()
    assert (finding.kind, finding.severity, finding.count) == ("proposals-elsewhere", "error", 3)
    assert finding in full_check(data())[0].findings
    write(every["val"])
    write(every["train"][1:], "train_boxes.csv")
    (finding,) = found(train="train_boxes.csv")
    assert (finding.kind, finding.count) == ("proposals-none", 1)
    assert "only the annotated boxes are trained there" in str(finding)


def test_length_of_ava_cuts_is_compared():
    infos = {
        "good": VideoInfo(27_030, 30, 9, 9),
        "slow": VideoInfo(22_525, 25, 9, 9),
        "cut": VideoInfo(26_000, 30, 9, 9),
    }
    (finding,) = frame_count_findings(infos)
    assert finding.examples == ("video cut: 26000 frames at 30/s",)


def test_contrast_is_positive_where_the_boxes_are_right():
    frames = np.full((3, 40, 60, 3), 50, np.uint8)
    for index in range(3):
        frames[index, 20:36:2, 30 + index : 36 + index] = 255
    box = np.array([[0.5, 0.5, 0.65, 0.9]])
    assert (picture_contrasts(frames, box) > 0).all()
    assert (picture_contrasts(frames, box[:, [1, 0, 3, 2]]) < 0).all()
    assert picture_contrasts(frames, np.array([[0.1, 0.1, 0.9, 0.9], [30, 20, 40, 30]])).shape == (0, 2)


def test_report_is_printed_and_drawn(make, tmp_path):
    report, examples = full_check(module(make(), "fractions"))
    console = Console(record=True, width=100)
    print_report(report, console)
    text = console.export_text()
    assert "error pixels-as-fractions (30x)" in text
    assert "training would be wrong: 1 errors" in text
    draw_sheet(examples, tmp_path / "sheet.png")
    assert Image.open(tmp_path / "sheet.png").size[0] == 4 * 360


def run(root, *overrides):
    command = [sys.executable, "-m", "evad.data.check", "data=custom", f"data.root={root}", "data.num_workers=1"]
    return subprocess.run([*command, *overrides], capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_command_reports_and_its_exit_code_is_the_verdict(make, tmp_path):
    root, out = make(), tmp_path / "out"
    result = run(root, f"hydra.run.dir={out}")
    assert result.returncode == 0, result.stdout + result.stderr
    assert json.loads((out / "report.json").read_text())["sound"]
    assert (out / "examples.png").is_file()
    result = run(root, f"hydra.run.dir={out}", "data.boxes=fractions")
    assert result.returncode == 1
    assert "pixels-as-fractions" in result.stdout
    found = json.loads((out / "report.json").read_text())
    assert found["counts"]["error"] == 1
    assert found["findings"][0]["kind"] == "pixels-as-fractions"
    (root / "annotations.csv").unlink()
    result = run(root, f"hydra.run.dir={out}")
    assert result.returncode == 1
    assert "no such annotation file" in result.stdout


def test_finding_reads_as_a_sentence():
    finding = Finding("kind", "error", "the box is odd", "mend it", 3, ("a.csv, line 7: video v", "b"))
    assert str(finding) == "a.csv, line 7: video v: the box is odd; mend it (2 more like it)"
    assert str(Finding("kind", "info", "two classes")) == "two classes"
