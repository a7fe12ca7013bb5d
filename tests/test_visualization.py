"""Figures that commands and scripts write next to their results: what is drawn."""

import importlib.util
import json
from pathlib import Path

import matplotlib
import matplotlib.image
import pandas as pd
import pytest

from evad.analysis.figures import plot_learning_curve, plot_training_cost

METRICS = pd.DataFrame(
    {
        "epoch": [0, 0, 0, 1, 1],
        "step": [0, 1, 1, 2, 2],
        "train/loss": [4.0, 2.0, None, 1.0, None],
        "val/mAP": [None, None, 0.25, None, 0.5],
        "val/person_AP": [None, None, 0.75, None, 0.875],
    }
)


def lines(figure):
    """Axis label -> points of its lines."""
    return {axis.get_ylabel(): [line.get_xydata().tolist() for line in axis.lines] for axis in figure.axes}


def test_learning_curve_has_the_mean_loss_and_the_scores_of_every_epoch(tmp_path):
    figure = plot_learning_curve(METRICS, tmp_path / "curve.png")
    assert lines(figure) == {
        "training loss": [[[1, 3], [2, 1]]],
        "action mAP@0.5 in %": [[[1, 25], [2, 50]]],
        "person AP@0.5 in %": [[[1, 75], [2, 87.5]]],
    }
    assert [axis.get_xlabel() for axis in figure.axes] == ["epoch"] * 3
    assert [axis.get_ylim() for axis in figure.axes[1:]] == [(0, 100)] * 2
    assert not figure.legends  # there is one run
    height, width = matplotlib.image.imread(tmp_path / "curve.png").shape[:2]
    assert (width, height) == (12 * 120, 4 * 120)


def test_learning_curve_of_a_run_too_short_to_log_a_loss(tmp_path):
    figure = plot_learning_curve(METRICS.drop(columns="train/loss"), tmp_path / "curve.png")
    assert lines(figure)["training loss"] == [[]]
    assert lines(figure)["action mAP@0.5 in %"] == [[[1, 25], [2, 50]]]


def test_run_without_any_score_has_no_learning_curve(tmp_path):
    metrics = pd.DataFrame({"epoch": [0], "val/mAP": [float("nan")]})
    assert plot_learning_curve(metrics, tmp_path / "curve.png") is None
    assert not list(tmp_path.iterdir())


def test_drawing_leaves_the_plotting_backend_alone(tmp_path):
    with matplotlib.rc_context({"backend": "svg"}):
        plot_learning_curve(METRICS, tmp_path / "curve.png")
        assert matplotlib.rcParams["backend"] == "svg"


def benchmarked(*rows):
    """Training steps as evad.benchmark measures them: (image size, keep rate, memory, clips per second)."""
    return pd.DataFrame(rows, columns=["size", "keep_rate", "peak_memory_mb", "clips_per_s"])


def test_training_cost_has_bars_by_keep_rate_for_every_image_size(tmp_path):
    table = benchmarked((224, 1.0, 800, 10), (224, 0.5, 400, 20), (288, 1.0, 1000, 5), (288, 0.5, 250, 8))
    figure = plot_training_cost(table, tmp_path / "fig6.png")
    assert [axis.get_ylabel() for axis in figure.axes] == ["peak memory in MiB", "training time per clip in ms"]
    memory, time = ([bar.get_height() for bar in axis.patches] for axis in figure.axes)
    assert memory == [800, 400, 1000, 250]
    assert time == [100, 50, 200, 125]
    assert [text.get_text() for text in figure.axes[0].texts] == ["", "-50%", "", "-75%"]
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["1", "0.5"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["image size 224", "image size 288"]
    assert figure.axes[0].get_ylim()[0] == 0
    assert (tmp_path / "fig6.png").is_file()


def test_training_cost_of_one_keep_rate_is_drawn_without_a_change(tmp_path):
    figure = plot_training_cost(benchmarked((224, 0.7, 800, 10)), tmp_path / "fig6.png")
    assert [bar.get_height() for axis in figure.axes for bar in axis.patches] == [800, 100]
    assert [text.get_text() for text in figure.axes[0].texts] == [""]


@pytest.fixture
def script(monkeypatch):
    """scripts/keep_rate_at_test.py, with a stand-in for evad.eval that notes its overrides in `calls`."""
    path = Path(__file__).parents[1] / "scripts/keep_rate_at_test.py"
    spec = importlib.util.spec_from_file_location("keep_rate_at_test", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.calls, module.figures = [], []

    def evaluate(command, check):
        overrides = dict(text.split("=") for text in command[3:])
        rate, folder = float(overrides["model.keep_rate"]), Path(overrides["hydra.run.dir"])
        report = {"mAP": rate / 2, "person_AP": 0.5, "keep_rate": rate, "gflops": 100 * rate}
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps(report))
        module.calls.append(rate)

    draw = module.keep_rate_at_test
    monkeypatch.setattr(module.subprocess, "run", evaluate)
    monkeypatch.setattr(
        module, "keep_rate_at_test", lambda *tables: module.figures.append(draw(*tables)) or module.figures[-1]
    )
    return module


@pytest.mark.parametrize("status", ["finished", "running"])
def test_keep_rates_of_a_checkpoint_are_evaluated_once_and_drawn(script, write_run, tmp_path, status):
    run = write_run(tmp_path / "run", status=status, keep_rate=0.5)
    (run / "config.yaml").touch()
    (run / "checkpoints").mkdir()
    for name in ("best", "last"):
        (run / f"checkpoints/{name}.ckpt").touch()
    script.main([f"{run}/checkpoints/last.ckpt", "0.75"])  # of another checkpoint, and too few for a figure
    assert not list(run.rglob("*.png"))
    for _ in range(2):
        script.main([f"{run}/checkpoints/best.ckpt", "1.0", "0.5"])
    assert script.calls == [0.75, 1.0, 0.5]
    table = pd.read_csv(run / "eval/keep_rate/keep_rate.csv")
    assert table.to_dict("list") == {
        "keep_rate": [1, 0.5],
        "mAP": [0.5, 0.25],
        "person_AP": [0.5, 0.5],
        "gflops": [100, 50],
    }
    assert (run / "eval/keep_rate/keep_rate.png").is_file()
    (axis,) = script.figures[-1].axes
    tested = axis.containers[0][0]
    assert tested.get_xydata().tolist() == [[0.5, 25], [1, 50]]
    assert {text.get_text() for text in axis.texts} == {"50 GFLOPs", "100 GFLOPs"}
    assert axis.get_xlabel() == r"keep rate $\rho$ at test"
    left, right = axis.get_xlim()
    assert left > right  # high keep rates are on the left
    assert len(axis.containers) == (2 if status == "finished" else 1)  # what the run itself reached
