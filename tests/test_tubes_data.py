"""Tube annotations: restricted pickles, both packagings, conversion, keyframes."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest

from evad.data.annotations.tubes import tube_keyframes
from evad.files.safe_pickle import RefusedPickleError, load_plain
from evad.files.tube_packages import Tube, TubeAnnotations
from evad.files.tubes import main, read_tubes, summary, write_tubes

FIXTURES = Path(__file__).parent / "fixtures" / "eval"
PICKLES = [
    "tubes_edge/UCF101v2-GT",
    "tubes_ucf_like/UCF101v2-GT",
    "tubes_jhmdb_like/JHMDB-GT",
]
SHARED = Path(__file__).parents[2] / "shared" / "data"


def equal(a, b):
    """Whether two data sets hold the same."""
    return (
        all(getattr(a, name) == getattr(b, name) for name in ("labels", "train_videos", "test_videos", "nframes"))
        and a.resolution == b.resolution
        and a.tubes.keys() == b.tubes.keys()
        and all(
            first.label == second.label
            and first.first_frame == second.first_frame
            and np.array_equal(first.boxes, second.boxes)
            for video in a.tubes
            for first, second in zip(a.tubes[video], b.tubes[video], strict=True)
        )
    )


def content(**changes):
    """A data set of two classes and two videos in the dictionary layout."""
    rows = np.array([[2, 10, 20, 49, 59], [3, 12, 20, 51, 59], [4, 14, 20, 53, 59]], dtype=np.float32)
    return {
        "labels": ["run", "jump"],
        "train_videos": [["run/a"]],
        "test_videos": [["jump/b"]],
        "nframes": {"run/a": 5, "jump/b": 4},
        "resolution": {"run/a": (60, 80), "jump/b": (60, 80)},
        "gttubes": {"run/a": {0: [rows, rows + np.array([0, 20, 0, 20, 0])]}, "jump/b": {1: [rows]}},
    } | changes


def saved(tmp_path, data, protocol=2, name="gt.pkl"):
    path = tmp_path / name
    path.write_bytes(pickle.dumps(data, protocol))
    return path


# Restricted unpickling


@pytest.mark.parametrize("protocol", range(6))
def test_plain_data_and_arrays_survive_every_protocol(tmp_path, protocol):
    data = {
        "arrays": [np.arange(6.0).reshape(2, 3).T, np.zeros((0, 5), np.float32), np.arange(3, dtype=">i4")],
        "scalars": (np.float32(1.5), np.uint8(4), np.bool_(True), np.str_("é"), None, True, 2.5, -3),
        "bytes": b"\x00\xff",
    }
    read = load_plain(saved(tmp_path, data, protocol))
    assert read["scalars"] == data["scalars"]
    assert read["bytes"] == data["bytes"]
    for got, expected in zip(read["arrays"], data["arrays"], strict=True):
        assert got.dtype == expected.dtype
        np.testing.assert_array_equal(got, expected)


class RunsOnLoad:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickle_that_runs_code_is_refused_by_name_and_nothing_runs(tmp_path):
    victim = tmp_path / "touched"
    path = saved(tmp_path, content(labels=RunsOnLoad(victim)), protocol=4)
    with pytest.raises(RefusedPickleError, match=r"gt\.pkl: refused .*getattr|gt\.pkl: refused .*Path"):
        read_tubes(path)
    assert not victim.exists()
    pickle.loads(path.read_bytes())
    assert victim.exists()


@pytest.mark.parametrize(
    ("code", "name"),
    [
        (b"cos\nsystem\n(S'true'\ntR.", "os.system"),
        (b"c__builtin__\neval\n(S'1'\ntR.", "__builtin__.eval"),
        (b"(S'true'\nios\nsystem\n.", "os.system"),
        (b"c_codecs\nencode\n(Vx\nVrot13\ntR.", "encoding 'rot13'"),
        (b"cnumpy\nndarray\n((I1000000000000\nttR.", "numpy.ndarray called"),
        (b"cnumpy\ndtype\n(S'O8'\ntR.", "array type 'O8'"),
        (b"cnumpy\nndarray\n.", "refused a type"),
        (b"Pexternal\n.", "external object 'external'"),
    ],
)
def test_anything_but_plain_data_is_refused_by_name(tmp_path, code, name):
    (tmp_path / "gt.pkl").write_bytes(code)
    with pytest.raises(RefusedPickleError, match=name):
        load_plain(tmp_path / "gt.pkl")


def test_arrays_of_objects_are_refused(tmp_path):
    with pytest.raises(RefusedPickleError, match="array type 'O8'"):
        load_plain(saved(tmp_path, np.array([{}], dtype=object)))


@pytest.mark.parametrize("part", [0.0, 0.3, 0.6, 0.99])
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_truncated_pickles_are_named(tmp_path, part, protocol):
    data = pickle.dumps(content(), protocol)
    (tmp_path / "gt.pkl").write_bytes(data[: int(len(data) * part)])
    with pytest.raises(ValueError, match=r"gt\.pkl is truncated or not a pickle"):
        read_tubes(tmp_path / "gt.pkl")


# The dictionary layout


@pytest.mark.parametrize("name", PICKLES)
def test_python_2_pickles_of_both_protocols_hold_what_the_json_says(name):
    first = read_tubes(FIXTURES / f"{name}.pkl")
    assert equal(first, read_tubes(FIXTURES / f"{name}.protocol0.pkl"))
    plain = json.loads((FIXTURES / name).with_name("ground_truth.json").read_text())
    for key in ("labels", "train_videos", "test_videos", "nframes"):
        assert getattr(first, key) == plain[key]
    for video, groups in plain["gttubes"].items():
        assert first.resolution[video] == tuple(plain["resolution"][video])
        expected = [(int(label), rows) for label, tubes in groups.items() for rows in tubes]
        for tube, (label, rows) in zip(first.tubes[video], sorted(expected, key=lambda pair: pair[0]), strict=True):
            assert tube.label == label
            np.testing.assert_array_equal(tube.frames, np.array(rows)[:, 0])
            np.testing.assert_array_equal(tube.boxes, np.array(rows, dtype=np.float32)[:, 1:])


@pytest.mark.parametrize("suffix", [".json", ".parquet"])
@pytest.mark.parametrize("name", PICKLES)
def test_written_annotations_read_back_equal(tmp_path, name, suffix):
    annotations = read_tubes(FIXTURES / f"{name}.pkl")
    write_tubes(annotations, tmp_path / f"copy{suffix}")
    assert equal(read_tubes(tmp_path / f"copy{suffix}"), annotations)


def test_a_data_set_without_a_tube_is_written_and_read(tmp_path):
    annotations = read_tubes(saved(tmp_path, content(gttubes={})))
    assert annotations.tubes == {"run/a": [], "jump/b": []}
    write_tubes(annotations, tmp_path / "copy.parquet")
    assert equal(read_tubes(tmp_path / "copy.parquet"), annotations)


ROWS = [[2, 10, 20, 49, 59], [3, 12, 20, 51, 59]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gttubes": {"run/a": {2: [ROWS]}}}, "video run/a: unknown class 2; the file names 2 classes"),
        ({"gttubes": {"run/a": {"x": [ROWS]}}}, "video run/a: unknown class 'x'"),
        ({"gttubes": {"run/a": {0: [[[2, 10, 20, 49]]]}}}, r"video run/a: a tube has shape \(1, 4\)"),
        ({"gttubes": {"run/a": {0: [np.zeros((0, 5))]}}}, r"video run/a: a tube has shape \(0, 5\)"),
        (
            {"gttubes": {"run/a": {0: [[[5, *[1] * 4], [6, *[1] * 4]]]}}},
            "run/a: .* frames 5 to 6, not within 1 to 5",
        ),
        ({"gttubes": {"run/a": {0: [[[0, 1, 1, 2, 2]]]}}}, "run/a: .* frames 0 to 0, not within 1 to 5"),
        ({"gttubes": {"run/a": {0: [[ROWS[0], [4, 1, 1, 2, 2]]]}}}, "run/a: .* must increase by one, got .*2.0, 4.0"),
        ({"gttubes": {"run/a": {0: [[[2.5, 1, 1, 2, 2]]]}}}, "run/a: .* must increase by one"),
        ({"gttubes": {"run/a": {0: [[[2, 1, 1, np.nan, 2]]]}}}, "run/a: .* not finite"),
        ({"gttubes": {"run/a": {0: [[[2, 50, 1, 40, 2]]]}}}, "run/a, frame 2: the box .* is inverted"),
        ({"gttubes": {"run/a": {0: [[[2, 1, 1, 2, 2], [3]]]}}}, "video run/a: a tube must be an array of frame"),
        ({"nframes": 5}, "does not have the layout of tube annotations"),
        ({"nframes": {"run/a": 5}}, "video jump/b has no nframes"),
        ({"resolution": {"run/a": (60, 80)}}, "video jump/b has no resolution"),
        ({"resolution": {"run/a": (60,), "jump/b": (60, 80)}}, r"video run/a: the resolution is \(60,\)"),
        ({"train_videos": [["run/a"], []]}, "2 lists of training videos but 1 of test"),
    ],
)
def test_wrong_annotations_are_named_with_their_video(tmp_path, changes, message):
    with pytest.raises(ValueError, match=r"gt\.pkl.*" + message):
        read_tubes(saved(tmp_path, content(**changes)))


def test_a_missing_key_and_a_foreign_object_are_named(tmp_path):
    data = content()
    del data["labels"]
    with pytest.raises(ValueError, match=r"gt\.pkl has no labels"):
        read_tubes(saved(tmp_path, data))
    with pytest.raises(ValueError, match="holds a list, expected a dictionary"):
        read_tubes(saved(tmp_path, [1]))


def test_broken_json_parquet_and_suffix_are_named(tmp_path):
    (tmp_path / "a.json").write_text('{"labels": [')
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match=r"a\.json is truncated or not JSON"):
        read_tubes(tmp_path / "a.json")
    with pytest.raises(ValueError, match=r"a\.parquet is truncated or not a Parquet file"):
        read_tubes(tmp_path / "a.parquet")
    with pytest.raises(ValueError, match=r"written as \.json or \.parquet, not \.csv"):
        write_tubes(read_tubes(saved(tmp_path, content())), tmp_path / "a.csv")


# The packaging by video


def pyannot(**changes):
    """Two videos; 8-bit boxes whose right edges pass 255."""
    tube = {"label": 0, "sf": 1, "ef": 3, "boxes": np.array([[200, 20, 100, 40], [201, 20, 100, 40]], dtype=np.uint8)}
    return {
        np.str_("run/a"): {"numf": np.uint8(5), "label": 0, "annotations": [tube | changes]},
        "jump/b": {"numf": 4, "label": 1, "annotations": [tube | {"label": 1}]},
        "jump/c": {"numf": 4, "label": 1, "annotations": []},
    }


def listed(tmp_path, *lines):
    (tmp_path / "test.txt").write_text("\n".join(lines))
    return tmp_path / "test.txt"


def test_pyannot_boxes_become_corners_of_1_based_frames_without_8_bit_overflow(tmp_path):
    annotations = read_tubes(saved(tmp_path, pyannot(), protocol=3), listed(tmp_path, "jump/b.avi 2", ""))
    assert annotations.labels == ["run", "jump"]
    assert annotations.test_videos == [["jump/b"]]
    assert annotations.train_videos == [["jump/c", "run/a"]]
    assert annotations.nframes == {"run/a": 5, "jump/b": 4, "jump/c": 4}
    assert annotations.resolution["run/a"] == (240, 320)
    tube = annotations.tubes["run/a"][0]
    assert tube.frames.tolist() == [2, 3]
    assert tube.boxes.tolist() == [[200, 20, 299, 59], [201, 20, 300, 59]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"label": 2}, "video run/a: unknown class 2"),
        ({"ef": 4}, r"video run/a: boxes of shape \(2, 4\) for frames 1 to 4"),
        ({"sf": 4, "ef": 6}, "video run/a: a tube spans frames 5 to 6, not within 1 to 5"),
        ({"boxes": np.zeros((2, 3))}, r"video run/a: boxes of shape \(2, 3\)"),
    ],
)
def test_wrong_pyannot_entries_are_named_with_their_video(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        read_tubes(saved(tmp_path, pyannot(**changes)), listed(tmp_path, "jump/b"))


def test_listed_videos_without_annotation_are_counted_and_a_foreign_list_is_refused(tmp_path):
    path = saved(tmp_path, pyannot())
    with pytest.warns(UserWarning, match=r"no annotations of 1 of 2 listed test videos \(first: run/z\)"):
        annotations = read_tubes(path, listed(tmp_path, "run/a", "run/z"))
    assert annotations.test_videos == [["run/a"]]
    with pytest.raises(ValueError, match="none of the 1 listed test videos"):
        read_tubes(path, listed(tmp_path, "other/z"))
    with pytest.raises(ValueError, match=r"if it is a pyannot\.pkl, name the list of its test videos"):
        read_tubes(path)
    with pytest.raises(ValueError, match="contains splits; leave out the list"):
        read_tubes(saved(tmp_path, content()), listed(tmp_path, "run/a"))


@pytest.mark.skipif(not (SHARED / "ucf101_24_pyannot.pkl").exists(), reason="the real UCF101-24 annotations are absent")
def test_the_real_ucf101_24_annotations_are_complete_and_inside_the_frame():
    annotations = read_tubes(SHARED / "ucf101_24_pyannot.pkl", SHARED / "ucf101_24_testlist01.txt")
    assert summary(annotations).splitlines() == [
        "3194 videos, 24 classes, 4458 tubes, 573862 boxes",
        "split 1: 2284 training and 910 test videos",
        "0 videos without a tube",
        "0 boxes reach outside the frame",
    ]
    assert annotations.labels[:2] == ["Basketball", "BasketballDunk"]
    assert len(tube_keyframes(annotations, 1, "test")) == 138527


# Keyframes


def test_every_annotated_frame_is_a_keyframe(tmp_path):
    annotations = read_tubes(saved(tmp_path, content()))
    frames = tube_keyframes(annotations, 1, "train")
    assert [(frame.video, frame.timestamp, frame.position) for frame in frames] == [
        ("run/a", "2", 1.0),
        ("run/a", "3", 2.0),
        ("run/a", "4", 3.0),
    ]
    np.testing.assert_allclose(frames[1].boxes, [[12 / 80, 20 / 60, 52 / 80, 1], [32 / 80, 20 / 60, 72 / 80, 1]])
    assert frames[1].labels.tolist() == [[1, 0], [1, 0]]
    assert frames[1].labels.dtype == np.float32
    assert frames[1].actors.tolist() == [0, 1]
    assert [frame.labels.tolist() for frame in tube_keyframes(annotations, 1, "test")] == [[[0, 1]]] * 3


def test_frames_without_annotation_are_keyframes_without_boxes_on_demand(tmp_path):
    annotations = read_tubes(saved(tmp_path, content()))
    frames = tube_keyframes(annotations, 1, "train", every_frame=True)
    assert [frame.timestamp for frame in frames] == ["1", "2", "3", "4", "5"]
    assert [len(frame.boxes) for frame in frames] == [0, 2, 2, 2, 0]
    assert frames[0].boxes.shape == (0, 4)
    assert frames[0].labels.shape == (0, 2)
    bare = tube_keyframes(read_tubes(saved(tmp_path, content(gttubes={}))), 1, "test", every_frame=True)
    assert [frame.position for frame in bare] == [0.0, 1.0, 2.0, 3.0]


def test_boxes_outside_the_frame_are_clipped_or_left_out_and_counted():
    boxes = np.array([[-10.0, 0, 39, 29], [80, 0, 90, 29], [0, 0, 79, 59]])
    annotations = TubeAnnotations(["run"], [["v"]], [[]], {"v": 3}, {"v": (60, 80)}, {"v": [Tube(0, 1, boxes)]})
    with pytest.warns(UserWarning, match="1 boxes") as remarks:
        frames = tube_keyframes(annotations, 1, "train")
    assert [str(remark.message) for remark in remarks] == [
        "1 boxes reach outside the frame and were clipped (first: video v, frame 1)",
        "1 boxes are outside the frame: left out (first: video v, frame 2)",
    ]
    assert [frame.timestamp for frame in frames] == ["1", "3"]
    assert [frame.boxes.tolist() for frame in frames] == [[[0, 0, 0.5, 0.5]], [[0, 0, 1, 1]]]
    assert summary(annotations).endswith("2 boxes reach outside the frame (first: video v)")


def test_videos_without_tubes_give_no_keyframes_and_unknown_parts_are_refused(tmp_path):
    annotations = read_tubes(saved(tmp_path, content(gttubes={})))
    assert tube_keyframes(annotations, 1, "train") == []
    with pytest.raises(ValueError, match="split 2 does not exist; choose one of 1 to 1"):
        tube_keyframes(annotations, 2)
    with pytest.raises(ValueError, match="subset 'val' does not exist; choose train or test"):
        tube_keyframes(annotations, 1, "val")


# Command


def test_command_converts_and_says_what_it_found(tmp_path, capsys):
    source = FIXTURES / "tubes_jhmdb_like" / "JHMDB-GT.protocol0.pkl"
    main([str(source), str(tmp_path / "gt.parquet")])
    assert equal(read_tubes(tmp_path / "gt.parquet"), read_tubes(source))
    assert capsys.readouterr().out.startswith(
        "10 videos, 3 classes, 10 tubes, 287 boxes\nsplit 1: 4 training and 6 test"
    )


def test_command_ends_with_one_clear_error(tmp_path):
    path = saved(tmp_path, pyannot())
    with pytest.raises(SystemExit, match=r"error: .*name the list of its test videos"):
        main([str(path), str(tmp_path / "gt.json")])
    main(
        [
            str(path),
            str(tmp_path / "gt.json"),
            "--test-list",
            str(listed(tmp_path, "run/a")),
            "--resolution",
            "240",
            "400",
        ]
    )
    assert read_tubes(tmp_path / "gt.json").resolution["run/a"] == (240, 400)
