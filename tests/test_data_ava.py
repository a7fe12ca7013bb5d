"""AVA annotations: every line is accounted for, and every bad one is named."""

import numpy as np
import pytest

from evad.data.annotations.ava import read_frame_lists, scan_ava
from evad.data.annotations.findings import require_sound
from evad.data.annotations.keyframes import make_keyframes
from evad.data.annotations.soundness import line_findings
from evad.data.video.images import NumberedFrames

CLASSES = range(1, 81)


@pytest.fixture
def annotations(tmp_path):
    def write(*lines, name="ava.csv"):
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return write


def scan(paths, class_ids=CLASSES, **settings):
    paths = paths if isinstance(paths, list) else [paths]
    return scan_ava({"val": paths}, class_ids, dict.fromkeys(class_ids, "x"), **settings)


def read(paths, class_ids=CLASSES, **settings):
    """Keyframes of the files, or the error of the first bad line."""
    annotations = scan(paths, class_ids, **settings)
    require_sound(line_findings(annotations))
    return make_keyframes(annotations, "val", None, class_ids)


def found(paths, **settings):
    """{kind: text} of the findings."""
    return {finding.kind: str(finding) for finding in line_findings(scan(paths, **settings))}


def test_lines_of_one_box_and_person_become_one_box_with_several_labels(annotations):
    path = annotations(
        "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,80,1",
        "-5KQ66BBWC4,0902,0.5,0.25,0.75,1.0,12,0",
        "-5KQ66BBWC4,0902,0.077,0.151,0.283,0.811,9,1",
    )
    (keyframe,) = read(path)
    assert (keyframe.video, keyframe.timestamp, keyframe.position) == ("-5KQ66BBWC4", "0902", 60.0)
    assert keyframe.boxes.dtype == np.float64
    assert keyframe.boxes.tolist() == [[0.077, 0.151, 0.283, 0.811], [0.5, 0.25, 0.75, 1.0]]
    assert keyframe.labels.dtype == np.float32
    assert keyframe.labels.shape == (2, 80)
    assert [np.flatnonzero(row).tolist() for row in keyframe.labels] == [[8, 79], [11]]
    assert keyframe.actors.tolist() == [1, 0]
    assert keyframe.actors.dtype == np.int64


def test_same_box_of_two_persons_stays_two_boxes(annotations):
    (keyframe,) = read(annotations("v,902,0,0,1,1,3,5", "v,902,0,0,1,1,3,6"))
    assert keyframe.actors.tolist() == [5, 6]
    assert keyframe.labels[:, 2].tolist() == [1, 1]


def test_columns_follow_the_class_ids(annotations):
    (keyframe,) = read(annotations("v,902,0,0,1,1,30,0", "v,902,0,0,1,1,7,0"), class_ids=[30, 2, 7])
    assert keyframe.labels.tolist() == [[1, 0, 1]]


def test_keyframes_are_ordered_by_video_and_second(annotations):
    path = annotations(*(f"{video},{second},0,0,1,1,1,0" for video, second in (("b", 950), ("a", 1000), ("a", 903))))
    assert [(k.video, k.timestamp) for k in read(path)] == [("a", "903"), ("a", "1000"), ("b", "950")]


def test_spellings_of_a_second_are_one_keyframe(annotations):
    (keyframe,) = read(annotations("v,0910,0,0,0.5,1,1,0", "v,910,0,0,1,1,1,0", "v,910.0,0,0,1,1,2,0"))
    assert keyframe.timestamp == "0910"
    assert keyframe.labels.sum(axis=1).tolist() == [1, 2]


def test_several_files_are_read_as_one(annotations):
    paths = [annotations("v,902,0,0,1,1,1,0", name="a.csv"), annotations("v,902,0,0,1,1,2,0", name="b.csv")]
    (keyframe,) = read(paths)
    assert keyframe.labels.sum() == 2


def test_line_of_two_columns_is_a_keyframe_without_boxes(annotations):
    first, second = read(annotations("v,0902", "v,903", "v,0903,0,0,1,1,4,2"))
    assert first.boxes.shape == (0, 4)
    assert first.labels.shape == (0, 80)
    assert first.actors.shape == (0,)
    assert second.boxes.shape == (1, 4)


def test_file_of_keyframes_without_boxes_is_read(annotations):
    assert [len(keyframe.boxes) for keyframe in read(annotations("v,902", "w,903"))] == [0, 0]


def test_position_counts_from_the_start_of_the_video(annotations):
    path = annotations("v,902.5,0,0,1,1,1,0")
    assert read(path)[0].position == 75
    assert read(path, first_second=0)[0].position == 902.5 * 30
    assert read(path, annotated_fps=25)[0].position == 62.5


def test_seconds_outside_the_valid_range_are_left_out_and_counted(annotations):
    path = annotations(*(f"v,{second},0,0,1,1,1,0" for second in (901, 902, 903, 1798, 1799, 1799)))
    assert [keyframe.timestamp for keyframe in read(path)] == ["902", "903", "1798"]
    assert "3 lines (50%) are outside seconds 902 to 1798 and left out" in found(path)["seconds-left-out"]
    assert len(read(path, valid_seconds=None)) == 5


def test_excluded_frames_are_left_out_and_counted(annotations):
    path = annotations("v,902,0,0,1,1,1,0", "v,0903,0,0,1,1,1,0", "w,903,0,0,1,1,1,0")
    excluded = annotations("v,903", "x,902", name="excluded.csv")
    assert [(k.video, k.timestamp) for k in read(path, excluded=excluded)] == [("v", "902"), ("w", "903")]
    assert f"1 lines of frames in {excluded} are left out" in found(path, excluded=excluded)["excluded"]
    assert len(read(path, excluded=annotations(name="none.csv"))) == 3


def test_repeated_lines_count_once_and_are_reported(annotations):
    path = annotations(*["v,902,0,0,1,1,1,0"] * 3)
    (keyframe,) = read(path)
    assert keyframe.labels.sum() == 1
    assert "line 2: video v, 902" in found(path)["duplicate-line"]
    assert "repeats another line and is used once; remove it (1 more like it)" in found(path)["duplicate-line"]


def test_boxes_without_area_stay_and_are_reported(annotations):
    path = annotations("v,902,0.5,0,0.5,1,1,0")
    (keyframe,) = read(path)
    assert len(keyframe.boxes) == 1
    assert "line 1: video v, 902, box 0.5 0 0.5 1, label '1': the box has no area" in found(path)["box-degenerate"]


def test_blank_lines_and_spaces_do_not_matter(annotations):
    (keyframe,) = read(annotations("", "v, 902, 0, 0, 1, 1, 1, 0", ""))
    assert keyframe.timestamp == "902"


GOOD = "v,902,0.1,0.2,0.3,0.4,5,0"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("v,902,0.1,0.2,0.3,0.4,5", r"7 columns \(v,902,0\.1,0\.2,0\.3,0\.4,5\): expected 2 or 8 columns"),
        (GOOD + ",1", "9 columns .*expected 2 or 8"),
        ("v,902,0.1,0.2,1.3,0.4,5,0", "the box reaches over the frame's edge; boxes are x1, y1, x2, y2 in fractions"),
        ("v,902,-0.1,0.2,0.3,0.4,5,0", "the box reaches over the frame's edge"),
        ("v,902,1.1,0.2,1.3,0.4,5,0", "the box is outside the frame"),
        ("v,902,0.3,0.2,0.1,0.4,5,0", "the box is inverted .*x1 <= x2 and y1 <= y2"),
        ("v,902,0.1,0.4,0.3,0.2,5,0", "the box is inverted"),
        ("v,902,0.1,0.2,0.3,0.4,81,0", r"not among the 80 classes with ids 1 to 80: 81; .*label list"),
        ("v,902,0.1,0.2,0.3,0.4,0,0", "labels start at 0, but the label list .* starts at 1"),
        ("v,902,0.1,0.2,0.3,0.4,1.5,0", "not among the 80 classes with ids 1 to 80: 1.5"),
        ("v,902,0.1,0.2,0.3,0.4,5,0.5", r"the person id \(8th column\) is not a whole number"),
        ("v,902,0.1,0.2,0.3,0.4,5,", r"the person id \(8th column\) is not a whole number"),
        ("v,902,0.1,0.2,left,0.4,5,0", "the time or the box is not a number"),
        ("v,902,0.1,0.2,,0.4,5,0", "the time or the box is not a number"),
        ("v,902,nan,0.2,0.3,0.4,5,0", "the time or the box is not a number"),
        ("v,inf", "the time or the box is not a number"),
        ("v,second", "the time or the box is not a number"),
        ("v,3,0.1,0.2,0.3,0.4,5,0", "the time is before 900, the start of the videos"),
    ],
)
def test_bad_line_is_named(annotations, line, problem):
    with pytest.raises(ValueError, match=rf"ava\.csv, line 3: .*{problem}"):
        read(annotations(GOOD, "", line, GOOD), valid_seconds=None)


def test_number_of_bad_lines_is_told(annotations):
    with pytest.raises(ValueError, match=r"line 1: .*boxes are declared as fractions.*pixels.* \(2 more like it\)"):
        read(annotations(*["v,902,10,20,30,40,5,0"] * 3))


def test_every_kind_of_error_is_told_at_once(annotations):
    with pytest.raises(
        ValueError, match=r"2 kinds of errors:\n  1\. .*line 2: .*inverted.*\n  2\. .*line 3: .*not among"
    ):
        read(annotations(GOOD, "v,902,0.3,0.2,0.1,0.4,5,0", "v,902,0.1,0.2,0.3,0.4,81,0"))


def test_action_outside_a_label_map_is_an_error(annotations):
    with pytest.raises(ValueError, match=r"not among the 2 classes with ids 3 to 9: 5"):
        read(annotations(GOOD), class_ids=[3, 9])


def test_file_without_lines_is_an_error(annotations):
    with pytest.raises(ValueError, match=r"ava\.csv: the file has no lines"):
        read(annotations())


def test_file_without_valid_lines_is_an_error(annotations):
    with pytest.raises(
        ValueError, match=r"1 lines \(100%\) are outside seconds 902 to 1798 .*data\.valid_seconds=null"
    ):
        read(annotations("v,2,0,0,1,1,1,0"))


def test_bad_excluded_line_is_named(annotations):
    with pytest.raises(ValueError, match=r"excluded\.csv, line 2: 3 columns \(v,904,x\): expected 2"):
        read(annotations(GOOD), excluded=annotations("v,903", "v,904,x", name="excluded.csv"))


@pytest.mark.parametrize("separator", [" ", ",", "\t"])
def test_frame_list_gives_the_frames_of_each_video_in_order(annotations, separator):
    header = ["original_vido_id", "video_id", "frame_id", "path", "labels"]
    rows = [["v", "0", i, f"v/v_{i + 1:06d}.jpg", '""'] for i in (2, 0, 1)]
    rows += [["1", "1", i, f"1/img_{i + 1:05d}.jpg", '""'] for i in range(2)]
    path = annotations(*(separator.join(map(str, row)) for row in [header, *rows]), name="train.csv")
    lists = read_frame_lists(path, "root")
    assert lists == {
        "v": NumberedFrames("root/v/v_", 6, ".jpg", 1, 3),
        "1": NumberedFrames("root/1/img_", 5, ".jpg", 1, 2),
    }
    assert list(lists["v"]) == [f"root/v/v_00000{number}.jpg" for number in (1, 2, 3)]


def test_frame_list_with_a_gap_is_an_error(annotations):
    path = annotations("original_vido_id video_id frame_id path labels", *(f'v 0 {i} v/{i}.jpg ""' for i in (0, 1, 3)))
    with pytest.raises(ValueError, match="frame ids of video v go from 1 to 3"):
        read_frame_lists(path, "root")


def test_table_that_is_no_frame_list_is_an_error(annotations):
    with pytest.raises(ValueError, match="not a frame list with the columns original_vido_id, frame_id, path"):
        read_frame_lists(annotations("video frame", "v 0"), "root")
