"""Figures and tables of runs: what is drawn where, and what it is called."""

import importlib.util
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from evad.analysis.figures import (
    class_bars,
    class_gain_bars,
    effect_of,
    finished_lines,
    keep_rate_at_test,
    learning_curves,
    training_cost,
)
from evad.analysis.open import first_pruning_run, open_run
from evad.analysis.tables import (
    change_table,
    class_gains,
    comparable,
    groups,
    label_of,
    markdown,
    varying,
    with_deviation,
)
from evad.analysis.token_figures import area_share_figure, attention_figure, survival_figure


def run(rate, seed, mean, status="finished", **settings):
    costs = {"gflops": 200 * rate, "train_clips_per_s": 10 / rate, "peak_memory_mb": 1000 * rate}
    return {
        "run": f"{rate}/{seed}/{'-'.join(map(str, settings.values()))}",
        "name": "mini",
        "status": status,
        "seed": seed,
        "keep_rate": rate,
        "fill": "zeros",
        **settings,
        "mAP_last": mean,
        "mAP_best": mean + 0.05,
        "person_AP_last": 0.9,
        "person_AP_best": 0.9,
        **costs,
        "problems": "",
    }


@pytest.fixture
def runs():
    return pd.DataFrame([run(1.0, 0, 0.5), run(1.0, 1, 0.7), run(0.5, 0, 0.4), run(0.5, 1, 0.9, status="failed")])


def texts(figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


def test_settings_that_vary_are_those_of_the_experimenter(runs):
    assert varying(runs) == ["keep_rate"]
    assert varying(runs.assign(name=["a", "a", "b", "b"])) == ["keep_rate"]
    assert varying(runs.iloc[:2].assign(name=["a", "b"])) == ["name"]


def test_settings_in_words():
    assert label_of({"keep_rate": 0.7, "w_kf": 4.0, "fill": "zeros", "roi_extension": None}) == (
        "keep rate 0.7, keyframe weight 4, fill zeros, RoI extension -"
    )
    assert label_of({}) == "all runs"


@pytest.mark.parametrize(("mean", "std", "text"), [(0.25, 0.01, "0.250 ± 0.010"), (134.5, float("nan"), "134.5")])
def test_numbers_are_rounded_to_what_they_mean(mean, std, text):
    assert with_deviation(mean, std) == text
    assert with_deviation(float("nan"), std) == "-"


def test_change_table_is_the_papers_table(runs):
    table = change_table(runs)
    assert table.to_dict("records") == [
        {
            "keep rate": "1",
            "n": "2",
            "mAP in %": "60.0 ± 14.1",
            "person AP in %": "90.0 ± 0.0",
            "GFLOPs": "200",
            "training clips/s": "10",
            "peak memory in MiB": "1000",
        },
        {
            "keep rate": "0.5",
            "n": "1",
            "mAP in %": "40.0",
            "person AP in %": "90.0",
            "GFLOPs": "100 (-50%)",
            "training clips/s": "20 (+100%)",
            "peak memory in MiB": "500 (-50%)",
        },
    ]
    assert markdown(table[["keep rate", "GFLOPs"]]) == (
        "| keep rate | GFLOPs |\n| --- | --- |\n| 1 | 200 |\n| 0.5 | 100 (-50%) |\n"
    )


def test_words_of_a_group_leave_out_what_most_runs_have(runs):
    odd = runs.iloc[:1].assign(classifier="linear")
    both = pd.concat([runs.assign(classifier="decoder"), odd], ignore_index=True)
    labels = groups(both, ["keep_rate", "classifier"])
    assert sum(map(len, labels.values())) == len(both)
    assert [label for label in labels if "classifier" in label] == [
        label_of({"keep_rate": odd["keep_rate"].iloc[0], "classifier": "linear"})
    ]
    assert len(labels) == len(both.groupby(["keep_rate", "classifier"]))


def test_legend_takes_room_of_its_own(runs):
    def height(count):
        many = pd.concat([runs.assign(fill=str(number), run=runs["run"] + str(number)) for number in range(count)])
        curves = pd.DataFrame({"run": many["run"], "epoch": 1, "train_loss": 1.0, "mAP": 0.5, "person_AP": 0.5})
        return learning_curves(curves, many).get_figheight()

    assert height(20) > height(2) > 4


def test_runs_that_differ_in_keep_rate_alone_are_comparable(runs):
    linear = runs.iloc[:1].assign(classifier="linear", keep_rate=0.1)
    both = pd.concat([runs.assign(classifier="decoder"), linear], ignore_index=True)
    assert comparable(both)["classifier"].unique().tolist() == ["decoder"]
    alone = both[both["keep_rate"] == both["keep_rate"][0]]
    assert comparable(alone) is alone


def test_each_group_of_a_change_table_has_its_own_reference():
    runs = pd.DataFrame([run(rate, 0, 0.5, image_size=size) for size in (288, 224) for rate in (0.5, 1.0)])
    runs.loc[runs["image_size"] == 288, "gflops"] *= 4
    table = change_table(runs, by=["image_size"])
    assert table["image size"].tolist() == ["224", "224", "288", "288"]
    assert table["GFLOPs"].tolist() == ["200", "100 (-50%)", "800", "400 (-50%)"]
    alone = change_table(runs[runs["keep_rate"] == 0.5], by=["image_size"])
    assert alone["GFLOPs"].tolist() == ["100", "400"]  # no reference, no change


def test_effect_has_means_error_bars_and_units(runs):
    figure = effect_of(runs, "keep_rate")
    assert [axis.get_ylabel() for axis in figure.axes] == [
        "action mAP@0.5 in %",
        "GFLOPs per clip",
        "peak memory in MiB",
        "training clips per second",
    ]
    axis = figure.axes[0]
    line, _, (bars,) = axis.containers[0]
    assert np.array_equal(line.get_xdata(), [0.5, 1.0])
    assert line.get_ydata() == pytest.approx([40, 60])
    low, high = bars.get_segments()[1][:, 1]
    assert high - low == pytest.approx(2 * 100 * np.std([0.5, 0.7], ddof=1))
    left, right = axis.get_xlim()
    assert left > right  # high keep rates stand on the left
    assert figure.axes[1].get_ylim()[0] == 0


def test_effect_of_words_has_one_tick_each_and_a_legend_over_the_other_settings():
    rows = [
        run(rate, seed, 0.5, order=order) for rate in (1.0, 0.5) for seed in (0, 1) for order in ("score", "position")
    ]
    figure = effect_of(pd.DataFrame(rows), "order", measures=["mAP_last"])
    (axis,) = figure.axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["position", "score"]
    assert texts(figure) == ["keep rate 0.5 (4 runs)", "keep rate 1 (4 runs)"]


def test_only_runs_that_differ_in_the_setting_alone_are_compared():
    runs = pd.DataFrame([run(1.0, 0, 0.5, fill="zeros"), run(0.5, 0, 0.5, fill="zeros"), run(0.5, 0, 0.5, fill="mask")])
    assert {label: len(rows) for label, rows in finished_lines(runs, "keep_rate").items()} == {"fill zeros": 2}
    with pytest.raises(ValueError, match="no two finished runs differ in keep_rate alone"):
        effect_of(runs.iloc[1:], "keep_rate")


def test_keep_rate_per_block_is_a_word_among_numbers(runs):
    mixed = runs.assign(keep_rate=["1.0, 0.7", *runs["keep_rate"][1:]])
    assert change_table(mixed, "keep_rate").iloc[-1, 0] != "1.0, 0.7"
    assert "1.0, 0.7" in change_table(mixed, "keep_rate").iloc[:, 0].tolist()
    labels = [tick.get_text() for tick in training_cost(mixed).axes[0].get_xticklabels()]
    assert "1.0, 0.7" in labels


def test_training_cost_names_the_saving(runs):
    figure = training_cost(runs)
    memory, time = figure.axes
    assert [bar.get_height() for bar in memory.patches] == [1000, 500]
    assert [bar.get_height() for bar in time.patches] == [100, 50]  # ms per clip
    assert [text.get_text() for text in time.texts] == ["", "-50%"]


def test_learning_curves_average_runs_with_equal_settings(runs):
    rows = [(name, 1, 2.0, value, 0.9) for name, value in zip(runs["run"], (0.2, 0.4, 0.1, 0.3))]
    curves = pd.DataFrame(rows, columns=["run", "epoch", "train_loss", "mAP", "person_AP"])
    figure = learning_curves(curves, runs)
    assert [axis.get_ylabel() for axis in figure.axes] == ["training loss", "action mAP@0.5 in %", "person AP@0.5 in %"]
    assert [line.get_ydata().tolist() for line in figure.axes[1].lines] == [[pytest.approx(20)], [pytest.approx(30)]]
    assert texts(figure) == ["keep rate 0.5 (2 runs)", "keep rate 1 (2 runs)"]
    with pytest.raises(ValueError, match="no run has logged"):
        learning_curves(curves.iloc[:0], runs)


def test_keep_rates_at_test_beside_training_at_each(runs):
    evaluations = pd.DataFrame(
        {"run": "a", "trained_keep_rate": [1.0, 1.0, 0.5], "keep_rate": [1.0, 0.5, 0.5], "mAP": [0.6, 0.3, 0.9]}
    ).assign(evaluation="eval/keep_rate/best")
    control = evaluations.iloc[:1].assign(mAP=0.0, evaluation="eval/keyframe_only")  # changes something else
    evaluations = pd.concat([evaluations, control], ignore_index=True)
    others = runs.assign(run=runs["run"] + "/linear", classifier="linear", mAP_best=0.0)
    runs = pd.concat([runs.assign(classifier="decoder"), others], ignore_index=True)
    evaluations["run"] = runs["run"][0]
    (axis,) = keep_rate_at_test(evaluations, runs).axes
    tested, trained = (container[0] for container in axis.containers)
    assert tested.get_ydata().tolist() == [30, 60]
    assert trained.get_ydata() == pytest.approx([45, 65])
    with pytest.raises(ValueError, match="keep_rate_at_test"):
        keep_rate_at_test(evaluations.iloc[1:], runs)


CLASSES = pd.DataFrame(
    [
        ("a", "wave", 0.2),
        ("a", "jump", 0.5),
        ("b", "wave", 0.4),
        ("b", "jump", 0.3),
        ("c", "wave", 0.6),
        ("c", "jump", 0.5),
    ],
    columns=["run", "class", "AP_last"],
)


def test_class_gains_are_sorted_means_over_runs():
    gains = class_gains(CLASSES, ["a"], ["b", "c"])
    assert gains["class"].tolist() == ["wave", "jump"]
    assert gains["second"].tolist() == [0.5, 0.4]
    assert gains["gain"].tolist() == pytest.approx([0.3, -0.1])
    assert gains["second_std"].tolist() == pytest.approx([0.2 / 2**0.5] * 2)
    with pytest.raises(ValueError, match="no AP per class of d"):
        class_gains(CLASSES, ["a"], ["d"])


def test_class_figures_mark_doubled_and_changed_classes():
    gains = class_gains(CLASSES, ["a"], ["b", "c"])
    (axis,) = class_bars(gains, "linear", "decoder", notable=0.2).axes
    wave, jump = axis.get_yticklabels()
    assert (wave.get_text(), wave.get_color(), wave.get_fontweight()) == ("wave", "green", "bold")
    assert (jump.get_text(), jump.get_color(), jump.get_fontweight()) == ("jump", "black", "normal")
    (axis,) = class_gain_bars(gains, "linear", "decoder").axes
    assert [text.get_text() for text in axis.texts] == ["+30.0", "-10.0"]


def test_survival_figure_fades_dropped_tokens_and_nothing_else():
    images = np.random.default_rng(0).uniform(size=(3, 4, 5, 3))  # 5 columns of pixels: the second token is cut
    survival = np.ones((2, 3, 1, 2), dtype=bool)
    survival[1, 0, 0, 1] = False
    figure = survival_figure(images, survival, patch=4, boxes=[(0, 0, 3, 3)])
    shown = np.array([axis.images[0].get_array() for axis in figure.axes]).reshape(3, 3, 4, 5, 3)
    assert np.array_equal(shown[0], images)
    assert np.array_equal(shown[1], images)
    assert np.array_equal(shown[2, 1:], images[1:])
    assert np.array_equal(shown[2, 0, :, :4], images[0, :, :4])
    assert (shown[2, 0, :, 4:] > 0.75).all()
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == [
        "input",
        "stage 1\n100% of tokens",
        "stage 2\n83% of tokens",
    ]
    assert [axis.get_title() for axis in figure.axes[:3]] == ["slice 1", "keyframe", "slice 3"]
    assert len(figure.axes[1].patches) == 1


def test_area_share_figure_averages_over_clips_with_boxes():
    nan = float("nan")
    shares = pd.DataFrame(
        [(0, 1, 0.2, 0.4, 0.5), (1, 1, 0.4, 0.6, 0.7), (2, 1, nan, nan, nan)],
        columns=["keyframe", "stage", "gt_area", "preserved", "context"],
    )
    figure = area_share_figure(shares)
    assert [bar.get_height() for bar in figure.axes[0].patches] == pytest.approx([50, 60])
    assert figure.axes[0].get_title() == "mean over 2 clips"
    assert any("area of the boxes: 30.0 %" in text for text in texts(figure))
    with pytest.raises(ValueError, match="no clip has a true box"):
        area_share_figure(shares.iloc[2:])


def test_attention_figure_has_a_row_and_a_scale_per_map():
    images = torch.full((3, 4, 4, 3), 0.5).numpy()
    attention = np.full((3, 1, 1), 0.5)
    attention[0] = np.nan
    figure = attention_figure(images, {"full": np.full((3, 1, 1), 1 / 3), "pruned": attention}, patch=4)
    assert len(figure.axes) == 3 * 3 + 2
    assert [axis.get_ylabel() for axis in figure.axes[9:]] == ["times uniform"] * 2
    assert (figure.axes[6].images[0].get_array() == 0.85).all()  # dropped


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_figures", Path(__file__).parents[1] / "scripts/make_figures.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_script_makes_what_the_runs_allow_and_says_why_not_the_rest(script, tmp_path, capsys, write_run):
    write_run(tmp_path / "runs/full", keep_rate=1.0)
    write_run(tmp_path / "runs/pruned", keep_rate=0.7)
    write_run(tmp_path / "runs/broken", status="failed", metrics=False)
    script.main([str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--clips", "1"])
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("runs.csv", "per_class.csv", "curves.csv", "evaluations.csv", "table.md"),
        *("learning_curves.png", "effect_keep_rate.png", "training_cost.png", "per_class.png", "per_class_gain.png"),
    }
    assert len(pd.read_csv(tmp_path / "out/runs.csv")) == 3
    printed = capsys.readouterr().out
    assert "3 runs: 2 finished, 1 failed" in printed
    assert f"{tmp_path}/runs/broken: failed (metrics.csv is missing)" in printed
    lines = [line for line in printed.splitlines() if line.startswith("not made: ")]
    assert [line.split(": ")[1] for line in lines] == ["keep_rate_at_test", "tokens_0", "attention_0", "area_share"]
    assert "has no config.yaml" in lines[1]


def test_script_without_runs_says_so(script, tmp_path):
    with pytest.raises(SystemExit, match=r"error: .* holds no run"):
        script.main([str(tmp_path)])


def test_a_run_opens_only_with_checkpoint_and_data(tmp_path):
    (tmp_path / "config.yaml").write_text("data:\n  root: /nowhere/mini\n")
    with pytest.raises(FileNotFoundError, match=r"no checkpoints/best\.ckpt or last\.ckpt"):
        open_run(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints/last.ckpt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match="data root /nowhere/mini does not exist"):
        open_run(tmp_path)


def test_tokens_are_those_of_the_first_finished_run_that_prunes(runs):
    assert first_pruning_run(runs) == runs["run"][2]
    with pytest.raises(ValueError, match="no finished run drops tokens"):
        first_pruning_run(runs.drop(index=2))
    with pytest.raises(ValueError, match="no finished run drops tokens"):
        first_pruning_run(runs.assign(pruning="none"))
    assert first_pruning_run(runs[:2].assign(keep_rate=["1, 0.5, 1", 1])) == runs["run"][0]
