"""AVA evaluation: the public programs' numbers, a slow reference, hand-made cases, files, command and Metric."""

import gzip
import json
import math
import pickle
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from evad.files import csv_rows
from evad.files.csv_rows import write_rows
from evad.files.label_map import read_label_map
from evad.metrics import ava, ava_csv
from evad.metrics.frame_ap import Boxes, ScoredBoxes, average_precision, best_rows, box_iou, match
from evad.metrics.frame_map import AVAFrameMAP
from evad.structures import Detections, Keyframe

FIXTURES = Path(__file__).parent / "fixtures" / "eval"
CASES = ["ava_edge_cases", "ava_edge_rows", "ava_medium_random", "ava_small_clean", "ava_ties"]
PROGRAMS = {
    "activitynet_2018": "score_sorted_2018",
    "activitynet_2019": "official_2019",
    "activitynet_2020": "official_2020",
    "evad": "evad_file_order",
}
PERSON = [0.1, 0.2, 0.5, 0.8]


def case_files(case):
    folder = FIXTURES / case
    expected = json.loads((folder / "expected.json").read_text())
    files = {
        "ground_truth": str(folder / "groundtruth.csv"),
        "detections": str(next(folder.glob("detections.csv*"))),
        "label_map": str(FIXTURES / expected["label_map"]),
    }
    excluded = folder / "excluded_timestamps.csv"
    return files | ({"exclude": str(excluded)} if excluded.exists() else {}), expected


# Public programs


@pytest.mark.parametrize("protocol", PROGRAMS)
@pytest.mark.parametrize("case", [case for case in CASES if case not in ("ava_ties", "ava_edge_rows")])
def test_equals_the_public_program(case, protocol):
    files, expected = case_files(case)
    result = ava.evaluate_files(**files, protocol=protocol)
    program = expected["evaluators"][PROGRAMS[protocol]]
    assert result.mAP == pytest.approx(program["mAP"], abs=1e-9)
    per_class = {str(action): ap for action, ap in result.per_class.items()}
    assert per_class == pytest.approx(program["per_class_AP"], abs=1e-9)
    if expected["counts_of"] == PROGRAMS[protocol]:
        for action, counts in expected["counts"].items():
            assert vars(result.counts[int(action)]) == counts


@pytest.mark.parametrize("case", ["ava_small_clean", "ava_medium_random"])
def test_equals_the_released_evaluation_at_every_iou_threshold(case):
    files, expected = case_files(case)
    for threshold, mean in expected["evaluators"]["evad_file_order"]["mAP_by_iou"].items():
        result = ava.evaluate_files(**files, protocol="evad", iou_threshold=float(threshold))
        assert result.mAP == pytest.approx(mean, abs=1e-9)


@pytest.mark.parametrize("protocol", PROGRAMS)
def test_equal_scores_stay_in_the_range_any_order_can_give(protocol):
    files, expected = case_files("ava_ties")
    result = ava.evaluate_files(**files, protocol=protocol)
    lowest, highest = expected["mAP_range"]
    assert lowest - 1e-9 <= result.mAP <= highest + 1e-9
    assert result.per_class[3] == 1.0
    for action, bounds in expected["tie_range"].items():
        assert bounds["lowest"] - 1e-9 <= result.per_class[int(action)] <= bounds["highest"] + 1e-9


def test_current_program_reads_bare_rows_and_fractional_timestamps():
    files, expected = case_files("ava_edge_rows")
    result = ava.evaluate_files(**files, protocol="activitynet_2020")
    program = expected["evaluators"]["official_2020"]
    assert result.mAP == pytest.approx(program["mAP"], abs=1e-9)
    assert {str(k): v for k, v in result.per_class.items()} == pytest.approx(program["per_class_AP"], abs=1e-9)
    for action, counts in expected["counts"].items():
        assert vars(result.counts[int(action)]) == counts


@pytest.mark.parametrize("protocol", ["activitynet_2018", "activitynet_2019", "evad"])
def test_older_programs_reject_bare_rows(protocol):
    files, _ = case_files("ava_edge_rows")
    with pytest.raises(ValueError, match=r"groundtruth\.csv, line 7: 2 columns, expected 7 or 8"):
        ava.evaluate_files(**files, protocol=protocol)


# Slow reference


def slow_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def slow_capped(rows, limit):
    """Rows of one frame left in a list of `limit` rows that are fed one by one."""
    full = []
    for index, (box, action, score) in rows:
        entry = (score, action, box[1], box[0], box[3], box[2], index)
        if len(full) < limit:
            full.append(entry)
        elif score > min(full)[0]:
            full.remove(min(full, key=lambda e: e[:6]))
            full.append(entry)
    return {entry[-1] for entry in full}


def slow_class_ap(truths, found, best_first):
    """AP of one class from {frame: [box]} and [(frame, box, score)] in file order."""
    outcome = []
    for frame in {frame for frame, _, _ in found}:
        rows = [(box, score) for f, box, score in found if f == frame]
        if best_first:
            rows.sort(key=lambda row: -row[1])
        taken = set()
        for box, score in rows:
            overlaps = [slow_iou(box, truth) for truth in truths.get(frame, [])]
            best = overlaps.index(max(overlaps)) if overlaps else None
            hit = best is not None and overlaps[best] >= 0.5 and best not in taken
            taken |= {best} if hit else set()
            outcome.append((score, hit))
    outcome.sort(key=lambda pair: -pair[0])
    total = sum(map(len, truths.values()))
    points = [(0.0, 1.0)]
    for count in range(1, len(outcome) + 1):
        right = sum(hit for _, hit in outcome[:count])
        points.append((right / total, right / count))
    area = 0.0
    for index, (left, right) in enumerate(pairwise(points)):
        area += (right[0] - left[0]) * max(precision for _, precision in points[index + 1 :])
    return area


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("protocol", PROGRAMS)
def test_equals_a_slow_loop_on_crowded_random_frames(seed, protocol, monkeypatch):
    rules = ava.PROTOCOLS[protocol]
    if rules.rows_per_frame:
        rules = ava.Protocol(**(vars(rules) | {"rows_per_frame": 7}))
        monkeypatch.setitem(ava.PROTOCOLS, protocol, rules)
    rng = np.random.default_rng(seed)
    low = rng.integers(0, 6, (60, 2))
    truth = Boxes(
        rng.integers(0, 5, 60),
        np.concatenate([low, low + rng.integers(1, 6, (60, 2))], axis=1) / 10,
        rng.integers(1, 4, 60),
    )
    low = rng.integers(0, 6, (150, 2))
    found = ScoredBoxes(
        rng.integers(0, 7, 150),
        np.concatenate([low, low + rng.integers(1, 6, (150, 2))], axis=1) / 10,
        rng.integers(1, 5, 150),
        rng.permutation(150) / 150,
    )
    result = ava.evaluate_rows(truth, found, [1, 2, 3], protocol, excluded=np.array([4]))
    excluded = {4} if rules.uses_exclusions else set()
    rows = [
        (i, (f.tolist(), b.tolist(), int(a), float(s)))
        for i, (f, b, a, s) in enumerate(zip(found.frame, found.boxes, found.action, found.score, strict=True))
        if f not in excluded and a in (1, 2, 3)
    ]
    if rules.rows_per_frame:
        kept = set()
        for frame in range(7):
            kept |= slow_capped([(i, row[1:]) for i, row in rows if row[0] == frame], rules.rows_per_frame)
        rows = [(i, row) for i, row in rows if i in kept]
    if not rules.unannotated_frames:
        rows = [(i, row) for i, row in rows if row[0] in truth.frame]
    for action in (1, 2, 3):
        truths = {
            frame: truth.boxes[(truth.frame == frame) & (truth.action == action)].tolist()
            for frame in range(5)
            if frame not in excluded
        }
        scored = [(frame, box, score) for _, (frame, box, a, score) in rows if a == action]
        expected = slow_class_ap(truths, scored, rules.best_first)
        assert result.per_class[action] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
def test_capping_equals_feeding_rows_one_by_one_when_scores_tie(seed):
    rng = np.random.default_rng(seed)
    rows = ScoredBoxes(
        rng.integers(0, 3, 60), rng.integers(0, 3, (60, 4)) / 4.0, rng.integers(1, 3, 60), rng.integers(0, 4, 60) / 4.0
    )
    kept = best_rows(rows, 8)
    for frame in range(3):
        members = np.flatnonzero(rows.frame == frame)
        survivors = slow_capped([(i, (rows.boxes[i], rows.action[i], rows.score[i])) for i in members], 8)

        def content(indices):
            return sorted((rows.score[i], rows.action[i], *rows.boxes[i]) for i in indices)

        assert content(members[kept[members]]) == content(survivors)


# By hand


def test_iou_of_box_pairs():
    a = np.array([[0, 0, 2, 2], [0, 0, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]], dtype=float)
    b = np.array([[1, 1, 3, 3], [0, 0, 1, 1], [1, 0, 2, 1], [1, 1, 1, 1]], dtype=float)
    np.testing.assert_array_equal(box_iou(a, b), [1 / 7, 1, 0, 0])


def test_average_precision_uses_the_precision_envelope():
    # precision after each: 0, 1/2, 2/3, 2/4, 3/5; envelope at the hits: 2/3, 2/3, 3/5.
    hits = np.array([False, True, True, False, True])
    assert average_precision(hits, 4) == pytest.approx((2 / 3 + 2 / 3 + 3 / 5) / 4, abs=1e-15)
    assert average_precision(np.zeros(0, dtype=bool), 3) == 0.0


def test_a_detection_never_falls_back_to_its_second_best_box():
    truth = np.array([[0, 0, 10, 10], [2, 0, 12, 10]], dtype=float)
    found = np.array([[0, 0, 10, 10], [0.5, 0, 10.5, 10], [2, 0, 12, 10]])
    group = np.zeros(3, dtype=np.int64)
    assert match(truth, group[:2], found, group, 0.5).tolist() == [True, False, True]


def test_among_equal_overlaps_the_first_box_is_best():
    truth = np.array([[0, 0, 10, 10], [0, 0, 10, 10]], dtype=float)
    found = truth.copy()
    group = np.zeros(2, dtype=np.int64)
    assert match(truth, group, found, group, 0.5).tolist() == [True, False]


def test_boxes_of_other_groups_do_not_match():
    box = np.array([[0.0, 0.0, 1.0, 1.0]])
    assert match(box, np.array([3]), box, np.array([2]), 0.5).tolist() == [False]
    assert match(box, np.array([3]), box, np.array([4]), 0.5).tolist() == [False]
    assert match(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), box, np.array([4]), 0.5).tolist() == [False]


def rows_of(*rows):
    return pd.DataFrame(rows, columns=ava_csv.DETECTIONS)


def test_released_evaluation_gives_a_box_to_the_first_row_the_others_to_the_best_scored():
    truth = rows_of(("v", 902, *PERSON, 1, 0), ("v", 903, *PERSON, 1, 0)).drop(columns="score")
    found = rows_of(("v", 902, *PERSON, 1, 0.1), ("v", 902, *PERSON, 1, 0.9), ("v", 903, *PERSON, 1, 0.5))
    assert ava.evaluate(truth, found, [1], "activitynet_2018").mAP == 1.0
    assert ava.evaluate(truth, found, [1], "evad").mAP == pytest.approx((2 / 3 + 2 / 3) / 2)


def test_frames_are_compared_by_value_and_to_the_microsecond():
    a = pd.DataFrame({"video": ["x", "y", "x"], "timestamp": [902, 902, 903]})
    b = pd.DataFrame({"video": ["y", "x", "x", "z"], "timestamp": [902.0, 903.0000001, 903.5, 902.0]})
    first, second = ava.number_frames(a, b)
    assert second[0] == first[1]
    assert second[1] == first[2]
    assert len({*first.tolist(), *second.tolist()}) == 5


def test_a_class_without_ground_truth_has_no_ap_and_one_without_detections_has_zero():
    truth = rows_of(("v", 902, *PERSON, 1, 0), ("v", 902, *PERSON, 2, 0)).drop(columns="score")
    result = ava.evaluate(truth, rows_of(("v", 902, *PERSON, 1, 0.5), ("v", 902, *PERSON, 3, 0.5)), [1, 2, 3])
    assert result.per_class == {1: 1.0, 2: 0.0, 3: None}
    assert result.mAP == 0.5


def test_nothing_to_find_leaves_the_mean_undefined_and_nothing_found_gives_zero():
    empty = rows_of()
    truth = rows_of(("v", 902, *PERSON, 1, 0)).drop(columns="score")
    assert math.isnan(ava.evaluate(empty.drop(columns="score"), rows_of(("v", 902, *PERSON, 1, 0.5)), [1]).mAP)
    assert ava.evaluate(truth, empty, [1]).mAP == 0.0


def test_rows_that_take_no_part_are_counted_by_reason():
    truth = rows_of(("v", 902, *PERSON, 1, 0), ("v", 902, *PERSON, 9, 0)).drop(columns="score")
    found = rows_of(("v", 902, *PERSON, 9, 0.5), ("v", 902, 0.5, 0.1, 0.4, 0.2, 1, 0.5), ("v", 903, *PERSON, 1, 0.5))
    excluded = pd.DataFrame({"video": ["v"], "timestamp": [903]})
    assert ava.evaluate(truth, found, [1], excluded=excluded).dropped == {
        "detections in excluded frames": 1,
        "ground truth of other classes": 1,
        "detections of other classes": 1,
        "detections with a box of no area": 1,
    }


def test_unknown_protocol_and_impossible_threshold_are_refused():
    with pytest.raises(ValueError, match="unknown protocol 'coco'; choose one of activitynet_2018"):
        ava.evaluate(rows_of(), rows_of(), [1], "coco")
    with pytest.raises(ValueError, match=r"iou_threshold 0 is outside \(0, 1\]"):
        ava.evaluate(rows_of(), rows_of(), [1], iou_threshold=0)


# Files


def test_plain_and_gzipped_files_with_or_without_person_ids_read_the_same(tmp_path):
    text = "a,0902,0.1,0.2,0.3,0.4,12{}\r\nb,903,0,0,1,1,80{}\r\n"
    (tmp_path / "8.csv").write_bytes(text.format(",0", ",").encode())
    (tmp_path / "7.csv.gz").write_bytes(gzip.compress(text.format("", "").encode()))
    first, second = ava_csv.read_ground_truth(tmp_path / "8.csv"), ava_csv.read_ground_truth(tmp_path / "7.csv.gz")
    pd.testing.assert_frame_equal(first, second)
    assert first.to_numpy().tolist() == [["a", 902, 0.1, 0.2, 0.3, 0.4, 12], ["b", 903, 0.0, 0.0, 1.0, 1.0, 80]]


def test_both_parsers_read_the_same(tmp_path):
    path = tmp_path / "d.csv"
    path.write_text('"a, b",902,0.1,0.2,0.30000000000000004,1e-3,12,1\n\nc,0903, 0.5,0.5,1,1,3,.25\n')
    layout = ava_csv._layout(ava_csv.DETECTIONS, fractional=False)
    fast, checked = csv_rows._read_with_arrow(path, layout), csv_rows._read_checked(path, layout)
    rows = checked.to_numpy().tolist()
    assert fast.to_numpy().tolist() == rows
    assert fast.dtypes.map(str).tolist() == checked.dtypes.map(str).tolist()
    assert rows[0] == ["a, b", 902, 0.1, 0.2, 0.30000000000000004, 0.001, 12, 1.0]


def test_written_rows_read_back_equal(tmp_path):
    rng = np.random.default_rng(0)
    table = rows_of(*[(f"v{i % 3}", 902 + i, *rng.random(4), i, rng.random()) for i in range(20)])
    write_rows(table, tmp_path / "d.csv.gz")
    back = ava_csv.read_detections(tmp_path / "d.csv.gz")
    pd.testing.assert_frame_equal(back.astype({"video": str}), table.astype({"video": str}), check_exact=True)


def test_an_empty_detections_file_is_read_as_no_rows(tmp_path):
    (tmp_path / "d.csv").write_text("")
    table = ava_csv.read_detections(tmp_path / "d.csv")
    assert list(table.columns) == ava_csv.DETECTIONS
    assert len(table) == 0


GOOD = "a,902,0.1,0.2,0.3,0.4,12,0.5\n"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("a,902,0.1,0.2,0.3,0.4,12\n", r"line 2: 7 columns, expected 8 \(video, .*, score\)"),
        ("a,902,0.1,0.2,0.3,0.4,12,0.5,1\n", "line 2: 9 columns"),
        ("a,902\n", "line 2: 2 columns"),
        ("a,902,0.1,x,0.3,0.4,12,0.5\n", "line 2: y1 'x' is not a number"),
        ("a,902,,0.2,0.3,0.4,12,0.5\n", "line 2: x1 '' is not a number"),
        ("a,902,0.1,0.2,0.3,0.4,1.5,0.5\n", "line 2: action_id '1.5' is not a whole number"),
        ("a,902.5,0.1,0.2,0.3,0.4,12,0.5\n", "line 2: timestamp '902.5' is not a whole number; .*activitynet_2020"),
        ("a,902,0.1,0.2,0.3,0.4,12,nan\n", "line 2: score is nan; it must be a finite number"),
        ("a,902,0.1,0.2,inf,0.4,12,0.5\n", "line 2: x2 is inf; it must be a finite number"),
    ],
)
def test_a_malformed_row_is_named_by_file_line_and_fault(tmp_path, line, message):
    path = tmp_path / "d.csv"
    path.write_text(GOOD + line + GOOD)
    with pytest.raises(ValueError, match=r"d\.csv, " + message):
        ava_csv.read_detections(path)


def test_fractional_timestamps_and_bare_rows_belong_to_the_2020_rules(tmp_path):
    (tmp_path / "g.csv").write_text("a,902.5,0.1,0.2,0.3,0.4,12,0\na,0903\n")
    table = ava_csv.read_ground_truth(tmp_path / "g.csv", fractional_timestamps=True)
    assert table["timestamp"].tolist() == [902.5, 903.0]
    assert table["action_id"].tolist() == [12, ava_csv.NO_ACTION]


def test_a_broken_archive_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(GOOD.encode() * 100)[:30])
    with pytest.raises(ValueError, match=r"d\.csv\.gz is not a readable csv file"):
        ava_csv.read_detections(tmp_path / "d.csv.gz")
    with pytest.raises(FileNotFoundError, match=r"none\.csv does not exist"):
        ava_csv.read_detections(tmp_path / "none.csv")


# Label maps


def test_both_protobuf_layouts_hold_the_same_60_classes():
    first, second = (read_label_map(FIXTURES / f"label_map_60{suffix}.pbtxt") for suffix in ("", "_label_id"))
    assert first == second
    assert len(first) == 60
    assert first[1] == "bend/bow (at the waist)"
    assert list(first) == sorted(first)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("item { name: 'it\\'s' id: 7 } # seven\nitem{id:2,name:\"b\"}", {2: "b", 7: "it's"}),
        ("12 hand clap\n3: run\n4,walk\n", {3: "run", 4: "walk", 12: "hand clap"}),
        ("run\n\nhand clap\n", {1: "run", 2: "hand clap"}),
    ],
)
def test_label_map_layouts(tmp_path, text, names):
    (tmp_path / "map").write_text(text)
    assert read_label_map(tmp_path / "map") == names


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no class found"),
        ("1 run\n1 walk\n", "line 2: id 1 is already 'run'"),
        ("run\nrun\n", "line 2: 'run' is already in line 1"),
        ("1 run\nwalk\n", "line 2: 'walk' has no id but other lines do"),
        ('item { name: "run" }\n', "line 1: the block has id None"),
        ("item { id: 1 }\n", "line 1: the block with id 1 has no name"),
        ('item { id: 1 name: "a" }\nitm { }\n', "line 2: 'itm { }' does not start"),
        ('item { id: 1\n name "a" }\n', "line 2: expected `key: value`"),
    ],
)
def test_a_malformed_label_map_is_named_by_line(tmp_path, text, message):
    (tmp_path / "map.txt").write_text(text)
    with pytest.raises(ValueError, match=r"map\.txt.*" + message):
        read_label_map(tmp_path / "map.txt")


# Command


def arguments(files, **more):
    return [part for key, value in (files | more).items() for part in (f"--{key.replace('_', '-')}", value)]


def test_command_prints_one_json_object(capsys):
    files, expected = case_files("ava_edge_cases")
    ava.main(arguments(files))
    output = capsys.readouterr()
    assert output.out.count("\n") == 1
    printed = json.loads(output.out)
    program = expected["evaluators"]["score_sorted_2018"]
    assert printed["mAP"] == pytest.approx(program["mAP"], abs=1e-9)
    assert printed["per_class"] == pytest.approx(program["per_class_AP"], abs=1e-9)
    assert "6 rows dropped: detections with a box of no area" in output.err


def test_command_says_that_the_2020_protocol_knows_no_exclusions(capsys):
    files, expected = case_files("ava_edge_cases")
    ava.main(arguments(files, protocol="activitynet_2020"))
    output = capsys.readouterr()
    mean = expected["evaluators"]["official_2020"]["mAP"]
    assert json.loads(output.out)["mAP"] == pytest.approx(mean, abs=1e-9)
    assert "has no exclusions" in output.err


def test_command_ends_with_one_clear_error(capsys, tmp_path):
    files, _ = case_files("ava_small_clean")
    (tmp_path / "d.csv").write_text("a,902\n")
    with pytest.raises(SystemExit, match=r"error: .*d\.csv, line 1: 2 columns"):
        ava.main(arguments(files, detections=str(tmp_path / "d.csv")))
    assert capsys.readouterr().out == ""


def test_command_warns_when_nothing_is_detected_or_nothing_is_to_find(capsys, tmp_path):
    files, _ = case_files("ava_small_clean")
    (tmp_path / "empty.csv").write_text("")
    ava.main(arguments(files, detections=str(tmp_path / "empty.csv")))
    output = capsys.readouterr()
    assert json.loads(output.out)["mAP"] == 0.0
    assert "no detection of an evaluated class" in output.err
    ava.main(arguments(files, ground_truth=str(tmp_path / "empty.csv")))
    output = capsys.readouterr()
    assert json.loads(output.out)["mAP"] is None
    assert "mAP is undefined" in output.err


# Metric

CLASS_IDS = [1, 3, 4]
SIZES = [(240, 320), (180, 240)]


def keyframe(video, timestamp, boxes, actions):
    labels = np.array([[action in row for action in CLASS_IDS] for row in actions], dtype=np.float32).reshape(-1, 3)
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Keyframe(video, timestamp, 0.0, boxes, labels, np.arange(len(boxes)))


def same(first, second):
    """Whether two results hold the same numbers under the same names, NaN equal to NaN."""
    return first.keys() == second.keys() and all(
        torch.equal(first[key].nan_to_num(-1), second[key].nan_to_num(-1)) for key in first
    )


def random_data(num_keyframes=12, seed=0):
    """Keyframes with one to three people and detections scattered around them."""
    rng = np.random.default_rng(seed)
    keyframes, detections = [], []
    for index in range(num_keyframes):
        n = int(rng.integers(1, 4))
        low = rng.uniform(0, 0.5, (n, 2))
        boxes = np.concatenate([low, low + rng.uniform(0.2, 0.5, (n, 2))], axis=1)
        actions = [set(rng.choice(CLASS_IDS, rng.integers(0, 3), replace=False).tolist()) for _ in range(n)]
        keyframes.append(keyframe(f"v{index % 2}", str(902 + index), boxes, actions))
        height, width = SIZES[index % 2]
        found = np.concatenate([boxes, boxes[: int(rng.integers(0, 2))]]) * [width, height, width, height]
        found = found + rng.normal(0, 6, found.shape)
        detections.append(
            Detections(
                torch.tensor(found, dtype=torch.float32),
                torch.tensor(rng.random(len(found)), dtype=torch.float32),
                torch.tensor(rng.random((len(found), 3)), dtype=torch.float32),
                torch.tensor([height, width]),
            )
        )
    return keyframes, detections


def filled(keyframes, detections, order, **settings):
    metric = AVAFrameMAP(keyframes, CLASS_IDS, **settings)
    for index in order:
        metric.update(torch.tensor([index]), [detections[index]])
    return metric


def test_metric_scores_a_case_worked_out_by_hand():
    keyframes = [keyframe("v", "902", [PERSON, [0.6, 0.2, 0.9, 0.8]], [{1, 3}, {1}])]
    pixels = torch.tensor([[32.0, 48.0, 160.0, 192.0], [0.0, 0.0, 20.0, 20.0]])
    found = Detections(
        pixels, torch.tensor([0.9, 0.8]), torch.tensor([[0.7, 0.1, 0.3], [0.9, 0.2, 0.4]]), torch.tensor([240, 320])
    )
    metric = AVAFrameMAP(keyframes, CLASS_IDS)
    metric.update(torch.tensor([0]), [found])
    scores = metric.compute()
    # Action 1: one of two persons found, ranked second: 1/2 * 1/2. Action 3: found, ranked second: 1/2.
    assert scores["AP/1"].item() == 0.25
    assert scores["AP/3"].item() == 0.5
    assert scores["AP/4"].isnan()
    assert scores["mAP"].item() == 0.375
    assert scores["person_AP"].item() == 0.5


@pytest.mark.parametrize("protocol", PROGRAMS)
def test_written_result_files_give_the_same_scores_as_the_metric(tmp_path, protocol):
    keyframes, detections = random_data()
    metric = filled(keyframes, detections, range(12), evaluated=[1, 4], protocol=protocol)
    write_rows(metric.detections_frame(), tmp_path / "detections.csv")
    write_rows(metric.ground_truth_frame(), tmp_path / "ground_truth.csv")
    (tmp_path / "map.txt").write_text("1 run\n4 jump\n")
    files = {key: str(tmp_path / f"{key}.csv") for key in ("ground_truth", "detections")}
    result = ava.evaluate_files(**files, label_map=str(tmp_path / "map.txt"), protocol=protocol)
    scores = metric.compute()
    assert 0 < result.mAP < 1
    assert scores["mAP"].item() == np.float32(result.mAP)
    assert scores["AP/4"].item() == np.float32(result.per_class[4])
    assert "AP/3" not in scores


def test_metric_counts_a_repeated_keyframe_once_and_ignores_the_order():
    keyframes, detections = random_data()
    expected = filled(keyframes, detections, range(12)).compute()
    shuffled = filled(keyframes, detections, [5, 2, 0, 11, 3, 4, 1, 6, 10, 9, 8, 7, 0, 5]).compute()
    assert same(shuffled, expected)


def test_metric_keeps_the_first_occurrence_of_a_keyframe():
    keyframes, detections = random_data()
    metric = filled(keyframes, detections, range(12))
    metric.update(torch.tensor([3]), [detections[4]])
    assert same(metric.compute(), filled(keyframes, detections, range(12)).compute())


def test_states_of_two_ranks_merge_to_the_result_of_one():
    keyframes, detections = random_data()
    first = filled(keyframes, detections, [0, 2, 4, 6, 8, 10])
    first.merge_state(filled(keyframes, detections, [1, 3, 5, 7, 9, 11, 0]))
    assert same(first.compute(), filled(keyframes, detections, range(12)).compute())


def test_only_seen_keyframes_are_ground_truth():
    keyframes, detections = random_data()
    assert same(filled(keyframes, detections, [3]).compute(), filled(keyframes[3:4], detections[3:4], [0]).compute())


def test_batches_and_single_clips_score_the_same():
    keyframes, detections = random_data()
    metric = AVAFrameMAP(keyframes, CLASS_IDS)
    metric.update(torch.arange(7), detections[:7])
    metric.update(torch.arange(7, 12), detections[7:])
    assert same(metric.compute(), filled(keyframes, detections, range(12)).compute())


def test_metric_survives_pickling_and_forgets_on_reset():
    keyframes, detections = random_data()
    metric = filled(keyframes, detections, range(12))
    expected = metric.compute()
    metric = pickle.loads(pickle.dumps(metric))
    assert same(metric.compute(), expected)
    metric.reset()
    metric.update(torch.tensor([0]), [detections[0]])
    assert same(metric.compute(), filled(keyframes, detections, [0]).compute())


def nothing(size=(240, 320)):
    return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 3), torch.tensor(size))


def test_no_detections_score_zero_and_are_counted():
    keyframes, _ = random_data()
    metric = AVAFrameMAP(keyframes, CLASS_IDS)
    metric.update(torch.arange(12), [nothing() for _ in range(12)])
    scores = metric.compute()
    assert metric.counts == (0, 0)
    assert scores["mAP"].item() == 0.0
    assert scores["person_AP"].item() == 0.0
    assert len(metric.detections_frame()) == 0


def test_an_mAP_of_zero_comes_with_counts_that_explain_it():
    keyframes = [keyframe("v", "902", [PERSON], [{1}])]
    metric = AVAFrameMAP(keyframes, CLASS_IDS)
    swapped = torch.tensor([[0.2 * 320, 0.1 * 240, 0.8 * 320, 0.5 * 240]])
    metric.update(torch.tensor([0]), [Detections(swapped, torch.ones(1), torch.ones(1, 3), torch.tensor([240, 320]))])
    assert metric.compute()["mAP"] == 0
    assert metric.counts == (1, 0)  # a box, but it overlaps nobody


def test_metric_without_update_says_so():
    with (
        pytest.warns(UserWarning, match="before"),
        pytest.raises(RuntimeError, match=r"seen no keyframe: call update\(\)"),
    ):
        AVAFrameMAP(random_data()[0], CLASS_IDS).compute()


def test_metric_refuses_what_it_cannot_score():
    keyframes, detections = random_data()
    metric = AVAFrameMAP(keyframes, CLASS_IDS)
    with pytest.raises(ValueError, match=r"\(2,\) keyframe indices for 1 detections"):
        metric.update(torch.tensor([0, 1]), detections[:1])
    with pytest.raises(ValueError, match="index 12 is outside the data set of 12 keyframes"):
        metric.update(torch.tensor([12]), detections[:1])
    broken = Detections(torch.zeros(1, 4), torch.tensor([float("nan")]), torch.zeros(1, 3), torch.tensor([240, 320]))
    with pytest.raises(ValueError, match="video v1, 903 are not finite"):
        metric.update(torch.tensor([1]), [broken])
    narrow = Detections(torch.zeros(1, 4), torch.zeros(1), torch.zeros(1, 2), torch.tensor([240, 320]))
    with pytest.raises(ValueError, match=r"video v1, 903: .*expected \(n, 4\), \(n,\) and \(n, 3\)"):
        metric.update(torch.tensor([1]), [narrow])
    with pytest.raises(ValueError, match=r"evaluated classes \[2\] are not among the 3 class ids"):
        AVAFrameMAP(keyframes, CLASS_IDS, evaluated=[1, 2])
    with pytest.raises(ValueError, match=r"video v0, 902: labels have shape \(\d, 3\) for \d boxes and 2 class ids"):
        AVAFrameMAP(keyframes, [1, 3])
