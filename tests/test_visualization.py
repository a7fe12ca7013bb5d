"""Pictures that commands leave in run folders."""

import matplotlib
import pandas as pd

from evad.analysis.plots import plot_learning_curve


def test_learning_curve_of_a_run_too_short_to_log_a_loss(tmp_path):
    metrics = pd.DataFrame({"epoch": [0], "step": [7], "val/mAP": [0.5], "val/person_AP": [0.75]})
    plot_learning_curve(metrics, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 5000


def test_drawing_leaves_the_plotting_backend_alone(tmp_path):
    metrics = pd.DataFrame({"epoch": [0], "step": [7], "val/mAP": [0.5], "val/person_AP": [0.75], "train/loss": [2.0]})
    with matplotlib.rc_context({"backend": "svg"}):
        plot_learning_curve(metrics, tmp_path / "curve.png")
        assert matplotlib.rcParams["backend"] == "svg"
