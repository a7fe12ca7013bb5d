"""Tube evaluation: the public programs' numbers, a slow reference, hand-made cases, command and Metric."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from evad.data.annotations.tubes import tube_keyframes
from evad.files.csv_rows import write_rows
from evad.files.tubes import read_tubes
from evad.metrics import tubes as metrics
from evad.metrics.frame_boxes import ScoredFrameBoxes, ScoredTubes, Tubes, pixel_iou, tube_iou
from evad.metrics.linking import greedy_pairs, hard_suppressed, link, link_candidates, soft_suppressed, suppressed_tubes
from evad.metrics.tube_ap import frame_ap, trapezoid_ap, video_ap
from evad.metrics.tube_map import TubeMAP
from evad.structures import Detections

FIXTURES = Path(__file__).parent / "fixtures" / "eval"
GROUND_TRUTH = {
    "tubes_edge": "UCF101v2-GT.pkl",
    "tubes_ucf_like": "UCF101v2-GT.pkl",
    "tubes_jhmdb_like": "JHMDB-GT.protocol0.pkl",
}


def case_files(case):
    folder = FIXTURES / case
    files = {"ground_truth": str(folder / GROUND_TRUTH[case]), "detections": str(folder / "frame_detections.csv")}
    given = folder / "tubes_given.json"
    expected = json.loads((folder / "expected.json").read_text())
    return files | ({"tubes": str(given)} if given.exists() else {}), expected


def flat(scores, path=""):
    """{path: number} of nested dictionaries and lists."""
    if not isinstance(scores, dict | list):
        return {path: scores}
    items = scores.items() if isinstance(scores, dict) else enumerate(scores)
    return {key: value for name, item in items for key, value in flat(item, f"{path}/{name}").items()}


# Public programs


@pytest.mark.parametrize("case", ["tubes_ucf_like", "tubes_jhmdb_like"])
def test_equals_the_public_programs(case):
    files, expected = case_files(case)
    got = flat(metrics.evaluate_files(**files))
    wanted = flat({key: expected[key] for key in ("splits", "mean_over_splits") if key in expected})
    assert {path: got[path] for path in wanted} == pytest.approx(wanted, abs=1e-5)


def test_competing_boxes_and_ious_at_the_threshold_equal_the_public_programs():
    files, expected = case_files("tubes_edge")
    got, wanted = (scores["splits"]["split1"] for scores in (metrics.evaluate_files(**files), expected))
    for name in ("frame_ap_raw", "frame_ap_soft_nms", "frame_ap_hard_nms"):
        for label in ("Basketball", "Fencing"):
            assert got[name]["per_class"][label] == pytest.approx(wanted[name]["per_class"][label], abs=1e-5)
    assert got["frame_ap_raw"]["recall"] == pytest.approx(wanted["frame_ap_raw"]["recall"], abs=1e-5)
    assert got["frame_ap_raw"]["detections"] == wanted["frame_ap_raw"]["detections"]
    low, high = (wanted["frame_ap_raw_range"][end] for end in ("lowest", "highest"))
    assert low["mAP"] <= got["frame_ap_raw"]["mAP"] <= high["mAP"]
    biking = got["frame_ap_raw"]["per_class"]["Biking"]
    assert low["per_class"]["Biking"] <= biking <= high["per_class"]["Biking"]


@pytest.mark.parametrize("case", ["tubes_ucf_like", "tubes_jhmdb_like"])
def test_linked_tubes_equal_those_of_the_public_program(case):
    files, _ = case_files(case)
    annotations = read_tubes(files["ground_truth"])
    names = list(annotations.nframes)
    found = link_candidates(
        metrics.scored_boxes(annotations, metrics.read_detections(files["detections"], annotations))
    )
    tubes, rows = link(found)
    linked = {video: [] for video in names}
    ends = np.cumsum(tubes.length)
    for i, end in enumerate(ends):
        boxes = slice(end - tubes.length[i], end)
        frames = tubes.first_frame[i] + np.arange(tubes.length[i])
        linked[names[tubes.video[i]]].append(
            (
                int(tubes.label[i]),
                np.column_stack([frames, tubes.boxes[boxes]]),
                tubes.score[i],
                found.score[rows[boxes]],
            )
        )
    expected = json.loads((FIXTURES / case / "tubes_linked.json").read_text())
    for video, wanted in expected.items():
        assert len(linked[video]) == len(wanted)
        by_content = sorted(linked[video], key=lambda tube: (tube[0], tube[1].tolist()))
        for tube, other in zip(by_content, sorted(wanted, key=lambda t: (t["label"], t["boxes"])), strict=True):
            assert tube[0] == other["label"]
            np.testing.assert_array_equal(tube[1], other["boxes"])
            assert tube[2] == pytest.approx(other["score"], abs=1e-6)
            np.testing.assert_allclose(tube[3], other["frame_scores"], atol=1e-6)


# Slow reference


def random_boxes(rng, n, videos=3, frames=6, labels=2):
    low = rng.integers(0, 8, (n, 2))
    return ScoredFrameBoxes(
        rng.integers(0, videos, n),
        rng.integers(1, frames + 1, n),
        rng.integers(0, labels, n),
        np.concatenate([low, low + rng.integers(2, 9, (n, 2))], axis=1).astype(float),
        rng.permutation(n) / n,
    )


def slow_iou(a, b):
    return pixel_iou(np.array([a]), np.array([b]))[0]


def slow_suppression(found, threshold):
    """Overlap of each box with the one that suppressed it."""
    overlap = np.zeros(len(found))
    removed = set()
    for i in np.argsort(-found.score):
        for j in np.argsort(-found.score):
            same = all(getattr(found, key)[i] == getattr(found, key)[j] for key in ("video", "frame", "label"))
            if same and found.score[j] < found.score[i] and not {i, j} & removed:
                iou = slow_iou(found.boxes[i], found.boxes[j])
                if iou > threshold:
                    overlap[j] = iou
                    removed.add(j)
    return overlap


@pytest.mark.parametrize("seed", range(8))
def test_suppression_equals_a_slow_loop(seed):
    found = random_boxes(np.random.default_rng(seed), 80, videos=2, frames=3)
    np.testing.assert_array_equal(soft_suppressed(found, 0.4).score, found.score * (1 - slow_suppression(found, 0.4)))
    np.testing.assert_array_equal(hard_suppressed(found, 0.3).score, found.score[slow_suppression(found, 0.3) == 0])


@pytest.mark.parametrize("seed", range(8))
def test_frame_ap_equals_a_slow_loop(seed):
    rng = np.random.default_rng(seed)
    truth, found = random_boxes(rng, 60), random_boxes(rng, 150)
    result = frame_ap(truth, found, 2)
    for label in (0, 1):
        free = [i for i in range(60) if truth.label[i] == label]
        total = len(free)
        hits = []
        for i in [i for i in np.argsort(-found.score) if found.label[i] == label]:
            rivals = [j for j in free if truth.video[j] == found.video[i] and truth.frame[j] == found.frame[i]]
            overlaps = [slow_iou(found.boxes[i], truth.boxes[j]) for j in rivals]
            hits.append(bool(rivals) and max(overlaps) >= 0.5)
            if hits[-1]:
                free.remove(rivals[int(np.argmax(overlaps))])
        assert result.average_precision[label] == pytest.approx(trapezoid_ap(np.array(hits), total), abs=1e-12)
        assert result.recall[label] == sum(hits) / total


def slow_link(found):
    """Rows of each tube, for one video and class, by the definition."""
    finished, active = [], []
    for frame in range(1, int(found.frame.max()) + 1):
        free = sorted(np.flatnonzero(found.frame == frame), key=lambda i: -found.score[i])
        still = []
        for tube in sorted(active, key=lambda rows: -np.mean(found.score[rows])):
            near = [i for i in free if slow_iou(found.boxes[tube[-1]], found.boxes[i]) >= 0.5]
            if near:
                free.remove(near[0])
                still.append([*tube, near[0]])
            else:
                finished.append(tube)
        active = still + [[i] for i in free]
    return {tuple(int(i) for i in rows) for rows in finished + active}


@pytest.mark.parametrize("seed", range(8))
def test_linking_equals_a_slow_loop_per_video_and_class(seed):
    found = random_boxes(np.random.default_rng(seed), 150, frames=8)
    tubes, rows = link(found, min_length=1, min_score=0)
    got = set()
    for start, length in zip(np.cumsum(tubes.length) - tubes.length, tubes.length, strict=True):
        got.add(tuple(rows[start : start + length].tolist()))
    expected = set()
    for video in range(3):
        for label in range(2):
            members = np.flatnonzero((found.video == video) & (found.label == label))
            expected |= {tuple(members[list(tube)].tolist()) for tube in slow_link(found.select(members))}
    assert got == expected


# By hand


def test_pixel_iou_counts_the_corner_pixels():
    a = np.array([[0.0, 0, 9, 9], [0, 0, 9, 9], [3, 3, 3, 3]])
    b = np.array([[5.0, 0, 14, 9], [10, 0, 19, 9], [3, 3, 3, 3]])
    np.testing.assert_array_equal(pixel_iou(a, b), [50 / 150, 0, 1])


def test_trapezoid_ap_starts_at_full_precision():
    # (0, 1) -> (1/2, 1) -> (1/2, 1/2) -> (1, 2/3)
    assert trapezoid_ap(np.array([True, False, True]), 2) == pytest.approx(1 / 2 + (1 / 2 + 2 / 3) / 4)
    assert trapezoid_ap(np.zeros(0, dtype=bool), 2) == 0.0


def test_a_duplicate_may_take_another_free_box():
    box = np.array([[0.0, 0, 9, 9]])
    zeros = np.zeros(2, dtype=np.int64)
    truth = ScoredFrameBoxes(zeros, zeros + 1, zeros, np.concatenate([box, box + np.array([2, 0, 2, 0])]), np.ones(2))
    found = ScoredFrameBoxes(zeros, zeros + 1, zeros, np.concatenate([box, box]), np.array([0.9, 0.8]))
    assert frame_ap(truth, found, 1).recall.tolist() == [1.0]
    assert frame_ap(truth, found, 1, iou_threshold=0.7).recall.tolist() == [0.5]


def test_greedy_choosers_come_in_order_and_take_the_dearest_free_choice():
    # Chooser 0 takes 1 (dearest), chooser 1 wanted it too and takes 0, chooser 2 finds nothing; group 7 is apart.
    group = np.array([3, 3, 3, 3, 3, 7])
    chooser = np.array([0, 0, 1, 1, 2, 5])
    choice = np.array([0, 1, 0, 1, 1, 4])
    made = greedy_pairs(group, chooser, choice, np.array([0.6, 0.7, 0.6, 0.9, 1.0, 0.1]))
    assert sorted(zip(*(part.tolist() for part in made), strict=True)) == [(0, 1), (1, 0), (5, 4)]


def tubes_of(*spans, score=None):
    """Tubes of one video and class from (first frame, length, x)."""
    count = len(spans)
    boxes = np.concatenate([np.tile([x, 0.0, x + 9, 9], (length, 1)) for _, length, x in spans])
    first, length, _ = (np.array(values, dtype=np.int64) for values in zip(*spans, strict=True))
    zeros = np.zeros(count, dtype=np.int64)
    return ScoredTubes(zeros, zeros, first, length, boxes, np.arange(count, 0, -1) / count if score is None else score)


def test_tube_iou_is_spatial_times_temporal_overlap():
    a, b = tubes_of((1, 10, 0)), tubes_of((6, 10, 0), (6, 10, 5), (11, 5, 0), (1, 10, 0))
    pairs = np.zeros(4, dtype=np.int64), np.arange(4)
    np.testing.assert_allclose(tube_iou(a, pairs[0], b, pairs[1]), [5 / 15, 5 / 15 * (50 / 150), 0, 1])


def test_tube_iou_is_the_same_in_chunks(monkeypatch):
    rng = np.random.default_rng(0)
    spans = [(int(rng.integers(1, 9)), int(rng.integers(1, 12)), int(rng.integers(0, 5))) for _ in range(12)]
    tubes = tubes_of(*spans)
    i, j = np.divmod(np.arange(144), 12)
    whole = tube_iou(tubes, i, tubes, j)
    monkeypatch.setattr("evad.metrics.frame_boxes._PAIRED_FRAMES", 7)
    np.testing.assert_array_equal(tube_iou(tubes, i, tubes, j), whole)
    np.testing.assert_allclose(np.diag(whole.reshape(12, 12)), 1)


def test_worse_tubes_that_overlap_a_kept_one_are_removed():
    tubes = tubes_of((1, 20, 0), (2, 20, 0), (1, 20, 30), score=np.array([0.5, 0.9, 0.1]))
    kept = suppressed_tubes(tubes)
    assert kept.score.tolist() == [0.9, 0.1]
    assert kept.boxes.shape == (40, 4)
    assert kept.boxes[20:, 0].tolist() == [30] * 20


def test_video_ap_finds_tubes_at_each_threshold():
    truth = Tubes(*(getattr(tubes_of((1, 10, 0), (1, 10, 50)), name) for name in Tubes.__dataclass_fields__))
    found = tubes_of((1, 10, 0), (1, 6, 50))
    loose, strict = video_ap(truth, found, 2, (0.6, 0.7))
    assert loose.average_precision.tolist() == [1.0, 0.0]
    assert strict.average_precision.tolist() == [0.5, 0.0]
    assert strict.detections.tolist() == [2, 0]


def test_short_and_weak_tubes_are_dropped_and_a_missing_frame_closes_a_tube():
    frames = np.array([*range(1, 17), *range(18, 34)])
    zeros = np.zeros(32, dtype=np.int64)
    boxes = np.tile([0.0, 0, 9, 9], (32, 1))
    found = ScoredFrameBoxes(zeros, frames, zeros, boxes, np.full(32, 0.25))
    tubes, _ = link(found)
    assert list(zip(tubes.first_frame.tolist(), tubes.length.tolist(), strict=True)) == [(1, 16), (18, 16)]
    assert tubes.score.tolist() == [0.25, 0.25]
    assert len(link(found, min_length=17)[0]) == 0
    assert len(link(found, min_score=0.3)[0]) == 0


def test_nothing_detected_and_nothing_to_find_score_zero():
    none = random_boxes(np.random.default_rng(0), 0)
    some = random_boxes(np.random.default_rng(0), 5)
    assert frame_ap(some, none, 2).mAP == 0.0
    assert frame_ap(none, some, 2).mAP == 0.0
    tubes, rows = link(link_candidates(none))
    assert len(tubes) == len(rows) == 0
    assert video_ap(tubes_of((1, 20, 0)), tubes, 2, (0.5,))[0].mAP == 0.0


# Files and command


def test_command_prints_one_json_object(capsys):
    files, expected = case_files("tubes_jhmdb_like")
    metrics.main(
        [part for key, value in files.items() for part in (f"--{key.replace('_', '-')}", value)] + ["--split", "2"]
    )
    printed = json.loads(capsys.readouterr().out)
    assert list(printed) == ["splits"]
    wanted = flat(expected["splits"]["split2"])
    got = flat(printed["splits"]["split2"])
    assert {path: got[path] for path in wanted} == pytest.approx(wanted, abs=1e-5)


HEADER = "video,frame,label,score,x1,y1,x2,y2\n"
KNOWN = "Biking/v_Biking_g01_c01"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{KNOWN},1,0,0.5,1,1,2,2\n", "line 1: the header is .*, expected 'video,frame,label,score,x1,y1,x2,y2'"),
        (f"{HEADER}{KNOWN},1,0,0.5,1,1,2\n", "line 2: 7 columns, expected 8"),
        (f"{HEADER}{KNOWN},1.5,0,0.5,1,1,2,2\n", "line 2: frame '1.5' is not a whole number"),
        (f"{HEADER}{KNOWN},1,0,0.5,1,nan,2,2\n", "line 2: y1 is nan"),
        (f"{HEADER}{KNOWN},99,0,0.5,1,1,2,2\n", f"frame 99 of video {KNOWN}, which has frames 1 to 20"),
        (f"{HEADER}{KNOWN},1,3,0.5,1,1,2,2\n", f"label 3 in video {KNOWN}; labels are 0 to 2"),
    ],
)
def test_malformed_detections_end_the_command_with_one_clear_error(tmp_path, text, message):
    files, _ = case_files("tubes_edge")
    (tmp_path / "d.csv").write_text(text)
    with pytest.raises(SystemExit, match=r"error: .*d\.csv.*" + message):
        metrics.main(["--ground-truth", files["ground_truth"], "--detections", str(tmp_path / "d.csv")])


def test_detections_of_unknown_videos_are_counted(tmp_path, capsys):
    files, expected = case_files("tubes_edge")
    text = Path(files["detections"]).read_text()
    (tmp_path / "d.csv").write_text(text + "Biking/other,1,0,0.99,1,1,2,2\n")
    metrics.main(["--ground-truth", files["ground_truth"], "--detections", str(tmp_path / "d.csv")])
    output = capsys.readouterr()
    assert "1 rows of videos without annotation are left out (first: Biking/other)" in output.err
    detections = json.loads(output.out)["splits"]["split1"]["frame_ap_raw"]["detections"]
    assert detections == expected["splits"]["split1"]["frame_ap_raw"]["detections"]


@pytest.mark.parametrize(
    ("tube", "message"),
    [
        ({"label": 0, "boxes": [[1, 0, 0, 9, 9]]}, "expected tubes with label, score and boxes"),
        ({"label": 7, "score": 1, "boxes": [[1, 0, 0, 9, 9]]}, "label 7; labels are 0 to 2"),
        ({"label": 0, "score": 1, "boxes": [[1, 0, 0, 9, 9], [2]]}, "boxes must be rows of frame"),
        ({"label": 0, "score": 1, "boxes": [[1, 0, 0, 9]]}, r"boxes of shape \(1, 4\)"),
        ({"label": 0, "score": 1, "boxes": [[1, 0, 0, 9, 9], [3, 0, 0, 9, 9]]}, "are not consecutive: split it"),
    ],
)
def test_malformed_tubes_are_named_with_their_video(tmp_path, tube, message):
    files, _ = case_files("tubes_edge")
    (tmp_path / "t.json").write_text(json.dumps({KNOWN: [tube]}))
    with pytest.raises(ValueError, match=rf"t\.json, video {KNOWN}: .*{message}"):
        metrics.evaluate_files(**files, tubes=str(tmp_path / "t.json"))


def test_tubes_of_unknown_videos_are_counted_and_broken_json_is_named(tmp_path):
    files, _ = case_files("tubes_edge")
    annotations = read_tubes(files["ground_truth"])
    (tmp_path / "t.json").write_text(json.dumps({"other": [{"label": 0, "score": 1, "boxes": [[1, 0, 0, 9, 9]]}]}))
    with pytest.warns(UserWarning, match=r"1 tubes of videos without annotation are left out \(first: other\)"):
        assert len(metrics.read_scored_tubes(tmp_path / "t.json", annotations)) == 0
    (tmp_path / "t.json").write_text("{")
    with pytest.raises(ValueError, match=r"t\.json is truncated or not JSON"):
        metrics.read_scored_tubes(tmp_path / "t.json", annotations)


# Metric


def fixture_clips(case="tubes_ucf_like", split=1):
    """Keyframes of every test frame of a fixture, and its detections of each."""
    files, expected = case_files(case)
    annotations = read_tubes(files["ground_truth"])
    rows = metrics.read_detections(files["detections"], annotations)
    clips = tube_keyframes(annotations, split, "test", every_frame=True)
    num_classes = len(annotations.labels)
    groups = dict(list(rows.groupby(["video", "frame"], observed=True)))
    detections = []
    for clip in clips:
        group = groups.get((clip.video, int(clip.timestamp)), rows[:0])
        scores = np.eye(num_classes)[group["label"]] * group["score"].to_numpy()[:, None]
        boxes = group[metrics.BOX].to_numpy() + np.array([0, 0, 1, 1])
        size = torch.tensor(annotations.resolution[clip.video])
        detections.append(
            Detections(torch.tensor(boxes), torch.tensor(group["score"].to_numpy()), torch.tensor(scores), size)
        )
    return clips, detections, expected["splits"][f"split{split}"]


def test_metric_equals_the_public_programs_when_it_sees_every_frame(tmp_path):
    clips, detections, expected = fixture_clips()
    metric = TubeMAP(clips, [0, 1, 2])
    order = np.random.default_rng(0).permutation(len(clips))
    for batch in np.array_split(order, 9):
        metric.update(torch.tensor(batch), [detections[i] for i in batch])
    scores = {name: score.item() for name, score in metric.compute().items()}
    assert scores["mAP"] == pytest.approx(expected["frame_ap_raw"]["mAP"], abs=1e-5)
    per_class = list(expected["frame_ap_raw"]["per_class"].values())
    assert [scores[f"AP/{label}"] for label in range(3)] == pytest.approx(per_class, abs=1e-5)
    for threshold in ("0.2", "0.5", "0.75", "0.5:0.95"):
        assert scores[f"video_mAP@{threshold}"] == pytest.approx(
            expected["video_ap_linked"][threshold]["mAP"], abs=1e-5
        )
    assert 0 < scores["person_AP"] <= 1

    write_rows(metric.detections_frame(), tmp_path / "d.csv", header=True)
    files, _ = case_files("tubes_ucf_like")
    written = metrics.evaluate_files(files["ground_truth"], str(tmp_path / "d.csv"))["splits"]["split1"]
    assert written["frame_ap_raw"]["mAP"] == pytest.approx(scores["mAP"], abs=1e-6)
    assert written["video_ap_linked"]["0.5"]["mAP"] == pytest.approx(scores["video_mAP@0.5"], abs=1e-6)


def test_metric_leaves_out_scores_up_to_the_minimum():
    clips, detections, _ = fixture_clips()
    counts = []
    for min_score in (0.0, 0.5):
        metric = TubeMAP(clips, [0, 1, 2], min_score=min_score)
        metric.update(torch.arange(len(clips)), detections)
        rows = metric.detections_frame()
        assert (rows["score"] > min_score).all()
        counts.append(len(rows))
    assert counts[0] > counts[1] > 0


def test_states_of_two_ranks_merge_to_the_result_of_one():
    clips, detections, _ = fixture_clips()
    half = len(clips) // 2
    one, first, second = (TubeMAP(clips, [0, 1, 2]) for _ in range(3))
    one.update(torch.arange(len(clips)), detections)
    first.update(torch.arange(half), detections[:half])
    second.update(torch.tensor([*range(half, len(clips)), 0]), [*detections[half:], detections[0]])
    first.merge_state(second)
    assert first.compute() == one.compute()


def test_metric_splits_a_tube_where_frames_were_not_seen():
    clips, detections, _ = fixture_clips()
    metric = TubeMAP(clips, [0, 1, 2])
    places = [i for i, clip in enumerate(clips) if clip.video == clips[0].video and len(clip.boxes)]
    seen = torch.tensor([i for i in places if i != places[3]])
    metric.update(seen, [detections[i] for i in seen])
    tubes = metric._truth_tubes(metric.gathered())
    assert tubes.length.sum() == sum(len(clips[i].boxes) for i in seen)
    actors = {actor for i in seen for actor in clips[i].actors.tolist()}
    assert len(tubes) == len(actors) + len(clips[places[3]].boxes)


def test_no_detections_score_zero_and_are_counted():
    clips, detections, _ = fixture_clips()
    metric = TubeMAP(clips, [0, 1, 2])
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, 3), detections[0].size)
    metric.update(torch.arange(len(clips)), [none] * len(clips))
    scores = metric.compute()
    assert metric.counts == (0, 0)
    assert {scores[name].item() for name in ("mAP", "person_AP", "video_mAP@0.5")} == {0.0}
    assert metric.detections_frame().empty


def test_metric_needs_frame_numbers():
    clips, _, _ = fixture_clips()
    odd = type(clips[0])(**(vars(clips[0]) | {"timestamp": "1.5"}))
    with pytest.raises(ValueError, match=r"video .*: timestamp '1.5' is not a frame number"):
        TubeMAP([odd], [0, 1, 2])


def test_detections_table_has_the_columns_of_the_file():
    clips, detections, _ = fixture_clips()
    metric = TubeMAP(clips, [0, 1, 2])
    metric.update(torch.tensor([0]), detections[:1])
    table = metric.detections_frame()
    assert list(table.columns) == list(metrics.DETECTIONS.columns)
    assert isinstance(table["video"].dtype, pd.CategoricalDtype)
