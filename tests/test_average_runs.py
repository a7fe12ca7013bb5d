"""Averages over runs and evaluations: which numbers are read, and what is said about them."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "average_runs.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("average_runs", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def write_run(folder, split, scores, extra=""):
    """A run whose epochs reached (mAP, video-mAP, AP of class 0)."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"data:\n  split: {split}\n")
    (folder / "classes.json").write_text('{"0": "run"}')
    (folder / "run.json").write_text('{"status": "finished"}')
    lines = ["epoch,train/loss,val/AP/0,val/mAP,val/video_mAP@0.5" + extra]
    for epoch, (mean, video, single) in enumerate(scores):
        lines += [f"{epoch},1.5,,," + "," * bool(extra), f"{epoch},,{single},{mean},{video}" + ",0.5" * bool(extra)]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def sweep(tmp_path):
    """Three splits; the second one was best in its first epoch."""
    folder = tmp_path / "sweep"
    write_run(folder / "0", 1, [(0.1, 0.2, 0.3), (0.5, 0.75, 0.25)])
    write_run(folder / "1", 2, [(0.75, 0.5, 0.5), (0.6, 0.9, 0.9)])
    write_run(folder / "2", 3, [(0.0, 0.0, 0.0), (1.0, 0.25, 0.75)])
    (folder / "multirun.yaml").write_text("hydra: {}\n")
    return folder


def run(script, capsys, *paths):
    script.main([str(path) for path in paths])
    captured = capsys.readouterr()
    return json.loads(captured.out), captured.err


def test_best_epochs_of_a_sweep_are_averaged(script, sweep, capsys):
    result, shown = run(script, capsys, sweep)
    assert result["mean"] == {"AP/run": 0.5, "mAP": 0.75, "video_mAP@0.5": 0.5}
    assert result["std"] == {"AP/run": 0.25, "mAP": 0.25, "video_mAP@0.5": 0.25}
    assert [(r["split"], r["epoch"], r["values"]["mAP"]) for r in result["runs"]] == [
        (1, 1, 0.5),
        (2, 0, 0.75),
        (3, 1, 1),
    ]
    assert result["left_out"] == []
    table = [line.split() for line in shown.splitlines()[3:]]
    assert table == [
        ["score", "split", "1", "split", "2", "split", "3", "mean", "std"],
        ["mAP", "0.5000", "0.7500", "1.0000", "0.7500", "0.2500"],
        ["video_mAP@0.5", "0.7500", "0.5000", "0.2500", "0.5000", "0.2500"],
    ]


def test_runs_may_be_named_one_by_one_and_come_in_order(script, sweep, tmp_path, capsys):
    write_run(sweep / "10", 4, [(0.25, 0.25, 0.25)])
    named, _ = run(script, capsys, sweep / "0", sweep / "1", sweep / "2", sweep / "10")
    found, _ = run(script, capsys, sweep)
    assert named == found


def write_evaluation(folder, mean, checkpoint, **more):
    folder.mkdir(parents=True)
    report = {"mAP": mean, "per_class": {"run": mean, "wave": None}, "keep_rate": 0.7, "gflops": 2.0}
    (folder / "metrics.json").write_text(json.dumps(report | {"checkpoint": str(checkpoint)} | more))
    return folder


def test_evaluations_are_averaged_with_their_decomposition(script, sweep, tmp_path, capsys):
    checkpoint = sweep / "1/checkpoints/best.ckpt"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    parts = {"decomposition": {"true_boxes": {"mAP": 0.75}, "person_recall": 0.5, "persons": 7}}
    first = write_evaluation(tmp_path / "a", 0.25, checkpoint, **parts)
    second = write_evaluation(tmp_path / "b", 0.75, tmp_path / "gone.ckpt", **parts)
    (second / ".hydra").mkdir()
    (second / ".hydra/overrides.yaml").write_text("- data.split=3\n- ckpt_path=gone.ckpt\n")
    result, shown = run(script, capsys, first, second / "metrics.json")
    assert result["mean"] == {
        "AP/run": 0.5,
        "mAP": 0.5,
        "decomposition/true_boxes/mAP": 0.75,
        "decomposition/person_recall": 0.5,
    }
    assert [(r["split"], r["epoch"]) for r in result["runs"]] == [(2, None), (3, None)]
    assert "warning" not in shown


def test_one_run_has_no_deviation(script, sweep, capsys):
    result, shown = run(script, capsys, sweep / "0")
    assert result["std"] == {"AP/run": None, "mAP": None, "video_mAP@0.5": None}
    assert shown.splitlines()[-1].split() == ["video_mAP@0.5", "0.7500", "0.7500", "-"]


def test_what_makes_the_mean_doubtful_is_said(script, sweep, tmp_path, capsys):
    write_run(sweep / "3", 2, [(0.5, 0.5, 0.5)], extra=",val/person_AP")
    evaluation = write_evaluation(tmp_path / "e", 0.5, "gone.ckpt")
    result, shown = run(script, capsys, sweep, evaluation)
    assert set(result["mean"]) == {"mAP", "AP/run"}
    assert result["left_out"] == ["person_AP", "video_mAP@0.5"]
    assert "several runs are of split 2" in shown
    assert "training runs (best epoch) and evaluations are mixed" in shown
    assert "2 scores that only some runs have are left out: person_AP, video_mAP@0.5" in shown


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty/readme.txt", "", "neither a run"),
        ("metrics.csv", "epoch,train/loss\n0,1.5\n", "has no val/mAP; the run was not validated"),
        ("metrics.json", "{", "truncated or not JSON"),
        ("metrics.json", "[]", "has no mAP; give a metrics.json of evad.eval"),
    ],
)
def test_folders_without_scores_end_with_one_clear_error(script, tmp_path, name, content, message):
    path = tmp_path / "x" / name
    path.parent.mkdir(parents=True)
    path.write_text(content)
    with pytest.raises(SystemExit, match=f"error: .*x.*{message}"):
        script.main([str(tmp_path / "x")])
    with pytest.raises(SystemExit, match=r"error: .*gone: neither a run"):
        script.main([str(tmp_path / "gone")])


def test_unfinished_run_is_named(script, sweep, capsys):
    (sweep / "1" / "run.json").write_text('{"status": "running"}')
    _, shown = run(script, capsys, sweep)
    assert f"{sweep / '1'} is running: the best of its epochs so far is used" in shown
