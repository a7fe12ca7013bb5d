"""Figures over runs: learning curves, quality and cost by setting, AP per class (Figs 6, 7, 9, 10).

Every function takes data frames of `evad.analysis` and returns a matplotlib `Figure`; none uses pyplot, so they work in
notebooks and in scripts. Error bars and bands are sample standard deviations over runs, usually seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evad.analysis.read import curve
from evad.analysis.tables import cell, groups, is_number, lines_over, other_settings, setting_order, summarize, varying
from evad.drawing.colours import COLOURS
from evad.runs.folders import RunFolder

AXES = {
    "mAP_last": ("action mAP@0.5 in %", 100),
    "mAP_best": ("action mAP@0.5 in %, best epoch", 100),
    "person_AP_last": ("person AP@0.5 in %", 100),
    "gflops": ("GFLOPs per clip", 1),
    "train_clips_per_s": ("training clips per second", 1),
    "peak_memory_mb": ("peak memory in MiB", 1),
    "keep_rate": (r"keep rate $\rho$", 1),
    "w_kf": ("weight of keyframe queries w_kf", 1),
    "decoder_depth": ("decoder blocks", 1),
    "roi_extension": ("RoI extension (x, y)", 1),
}
"""Column -> axis label and the factor that gives its unit."""

BLUE, ORANGE, GREEN, GREY = COLOURS[4], COLOURS[5], COLOURS[2], "0.6"
MARKERS = "osD^vPX"


def colour(number: int) -> str:
    """Colour of line `number`, visible on white."""
    return (BLUE, ORANGE, GREEN, COLOURS[6], COLOURS[0], COLOURS[1], "black")[number % 7]


def count(runs: int) -> str:
    return f"{runs} run" + "s" * (runs != 1)


def learning_curves(curves: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw training loss, action mAP and person AP over epochs: mean and deviation of runs with equal settings.

    Args:
        curves: Result of `evad.analysis.curves`.
        runs: Result of `read_runs` for the same runs; unfinished ones are drawn up to their last epoch.

    Raises:
        ValueError: if nothing was logged.
    """
    if curves.empty:
        raise ValueError("no run has logged a loss or a validation")
    figure = Figure(figsize=(12, 4), layout="constrained")
    panels = (("train_loss", "training loss", 1), ("mAP", *AXES["mAP_last"]), ("person_AP", *AXES["person_AP_last"]))
    axes = figure.subplots(1, 3)
    for axis, (column, title, scale) in zip(axes, panels):
        for number, (label, rows) in enumerate(groups(runs, varying(runs)).items()):
            mine = curves[curves["run"].isin(rows["run"])].dropna(subset=[column])
            statistics = (scale * mine[column].astype(float)).groupby(mine["epoch"]).agg(["mean", "std"])
            draw_band(axis, statistics, f"{label} ({count(mine['run'].nunique())})", number)
        axis.set(xlabel="epoch", ylabel=title)
        axis.xaxis.get_major_locator().set_params(integer=True)
        decorate(axis)
    for axis in axes[1:]:
        axis.set_ylim(0, 100)
    if len(runs) > 1:
        legend_below(figure, axes[1])
    return figure


def legend_below(figure: Figure, axis: Axes) -> None:
    """Add one legend for all panels, in as many columns as fit, and enlarge the figure for it."""
    handles, labels = axis.get_legend_handles_labels()
    columns = max(1, int(11 * figure.get_figwidth() / (max(map(len, labels)) + 8)))  # characters in an inch
    figure.set_figheight(figure.get_figheight() + 0.23 * -(-len(labels) // columns))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


def draw_band(axis: Axes, statistics: pd.DataFrame, label: str, number: int) -> None:
    x = statistics.index.to_numpy(dtype=float)
    mean, deviation = statistics["mean"].to_numpy(), statistics["std"].fillna(0).to_numpy()
    axis.plot(x, mean, color=colour(number), marker=MARKERS[number // 7 % 7], markersize=4, label=label)
    axis.fill_between(x, mean - deviation, mean + deviation, color=colour(number), alpha=0.15, linewidth=0)


def decorate(axis: Axes) -> None:
    """Add a light grid, and remove the frame above and on the right."""
    axis.grid(alpha=0.3)
    axis.spines[["top", "right"]].set_visible(False)


def finished_lines(runs: pd.DataFrame, setting: str) -> dict[str, pd.DataFrame]:
    """`lines_over` of the finished runs; ValueError if no two of them differ in `setting` alone."""
    lines = lines_over(runs[runs["status"] == "finished"], setting)
    if not lines:
        raise ValueError(f"no two finished runs differ in {setting} alone, so there is nothing to compare")
    return lines


def effect_of(
    runs: pd.DataFrame,
    setting: str,
    measures: Sequence[str] = ("mAP_last", "gflops", "peak_memory_mb", "train_clips_per_s"),
) -> Figure:
    """Draw quality and cost against one setting: means with error bars, single runs as dots (Tables 1 and 2).

    There is one line for each combination of the other settings that vary.

    Args:
        runs: Result of `read_runs`.
        setting: Column on the x axis; high keep rates are on the left.
        measures: Columns to draw, one panel each.

    Raises:
        ValueError: if no two finished runs differ in `setting` alone.
    """
    lines = finished_lines(runs, setting)
    width, rows = min(len(measures), 2), -(-len(measures) // 2)
    figure = Figure(figsize=(5.2 * width, 3.5 * rows + 0.4), layout="constrained")
    values = sorted({value for group in lines.values() for value in group[setting]}, key=setting_order)
    numeric = all(is_number(value) for value in values)
    place = {value: float(value) if numeric else number for number, value in enumerate(values)}
    for axis, measure in zip(figure.subplots(rows, width, squeeze=False).flat, measures):
        for number, (label, group) in enumerate(lines.items()):
            shift = 0.0 if numeric else 0.1 * (number - (len(lines) - 1) / 2)
            mine = {value: x + shift for value, x in place.items()}
            draw_line(axis, group, setting, measure, mine, f"{label} ({count(len(group))})", number, joined=numeric)
        axis.set(xlabel=AXES.get(setting, (setting,))[0], ylabel=AXES[measure][0])
        axis.set_xticks(list(place.values()), [f"{value:g}" if numeric else str(value) for value in values])
        set_range(axis, measure)
        if setting == "keep_rate" and numeric:
            axis.invert_xaxis()
        axis.margins(x=0.12)
        decorate(axis)
    if len(lines) > 1:
        legend_below(figure, figure.axes[0])
    return figure


def set_range(axis: Axes, measure: str) -> None:
    """Let costs start at 0 and AP span at least 10 points, so that noise does not look like an effect."""
    low, high = axis.get_ylim()
    if "AP" not in measure:
        axis.set_ylim(0, 1.06 * high)  # markers and error bars reach beyond the values
    else:
        margin = max(0.03 * (high - low), (10 - (high - low)) / 2)
        axis.set_ylim(max(0.0, low - margin), min(100.0, high + margin))


def draw_line(
    axis: Axes, runs: pd.DataFrame, setting: str, measure: str, place: dict, label: str, number: int, joined: bool
) -> None:
    scale = AXES[measure][1]
    summary = summarize(runs, by=[setting], measures=[measure])
    x = [place[value] for value in summary[setting]]
    style = "-" if joined else "none"
    draw_means(axis, x, scale * summary[f"{measure}_mean"], scale * summary[f"{measure}_std"], label, number, style)
    axis.scatter(runs[setting].map(place), scale * runs[measure], color=colour(number), s=10, alpha=0.4)


def draw_means(
    axis: Axes, x: Sequence[float], mean: pd.Series, deviation: pd.Series, label: str, number: int, style: str = "-"
) -> None:
    shade, marker = colour(number), MARKERS[number % 7]
    axis.errorbar(x, mean, deviation.fillna(0), color=shade, marker=marker, linestyle=style, capsize=4, label=label)


def training_cost(runs: pd.DataFrame) -> Figure:
    """Draw memory and time of training by keep rate, compared with the highest (Fig. 6); errors as in `effect_of`."""
    return cost_bars(finished_lines(runs, "keep_rate"))


def cost_bars(lines: dict[str, pd.DataFrame]) -> Figure:
    """Draw `training_cost` with one colour for each entry of `lines`."""
    figure = Figure(figsize=(10, 3.8), layout="constrained")
    panels = (("peak_memory_mb", "peak memory in MiB"), ("ms_per_clip", "training time per clip in ms"))
    for axis, (measure, title) in zip(figure.subplots(1, 2), panels):
        wide = 0.8 / len(lines)
        given = {rate for rows in lines.values() for rate in rows["keep_rate"]}
        rates = sorted(given, key=setting_order, reverse=True)
        for number, (label, rows) in enumerate(lines.items()):
            timed = rows.assign(ms_per_clip=1000 / rows["train_clips_per_s"])
            summary = summarize(timed, by=["keep_rate"], measures=[measure])
            summary = summary.sort_values("keep_rate", ascending=False, key=lambda rates: rates.map(setting_order))
            x = [rates.index(rate) + wide * (number - (len(lines) - 1) / 2) for rate in summary["keep_rate"]]
            mean, deviation = summary[f"{measure}_mean"], summary[f"{measure}_std"].fillna(0)
            bars = axis.bar(x, mean, wide * 0.9, yerr=deviation, color=colour(number), capsize=3, label=label)
            changes = mean / mean.iloc[0] - 1
            axis.bar_label(bars, ["", *(f"{change:+.0%}" for change in changes.iloc[1:])], padding=2, fontsize=8)
        axis.set_xticks(range(len(rates)), [cell(rate) for rate in rates])
        axis.set(xlabel=r"keep rate $\rho$", ylabel=title)
        axis.margins(y=0.12)
        decorate(axis)
    if list(lines) != ["all runs"]:
        legend_below(figure, figure.axes[0])
    return figure


def alike(runs: pd.DataFrame, examples: pd.DataFrame) -> pd.DataFrame:
    """Runs with the same settings as one of `examples`, except for the keep rate; all runs if there are no examples."""
    settings = other_settings(runs, "keep_rate")
    if examples.empty or not settings:
        return runs
    return runs.merge(examples[settings].drop_duplicates(), on=settings)


def keep_rate_at_test(evaluations: pd.DataFrame, runs: pd.DataFrame) -> Figure:
    """Draw the AP of one detector at several keep rates, and of runs trained at each keep rate (Fig. 7).

    The points of a single training are labelled with their cost.

    Args:
        evaluations: Result of `evad.analysis.evaluations`.
        runs: Result of `read_runs` for the runs to compare with. Their best epoch is drawn, as in `best.ckpt`.

    Raises:
        ValueError: if no run was evaluated at two keep rates.
    """
    found = evaluations.dropna(subset=["mAP", "keep_rate"])
    found = found[found["evaluation"].astype(str).str.contains("keep_rate")]  # other evaluations vary other settings
    figure = Figure(figsize=(6.5, 4.2), layout="constrained")
    axis = figure.subplots()
    tested = [(rate, rows) for rate, rows in found.groupby("trained_keep_rate") if rows["keep_rate"].nunique() > 1]
    if not tested:
        raise ValueError(
            "no run was evaluated at two keep rates: use scripts/keep_rate_at_test.py RUN/checkpoints/best.ckpt"
        )
    for number, (rate, rows) in enumerate(tested, start=1):
        label = rf"trained at $\rho$ = {rate}, tested at others ({count(rows['run'].nunique())})"
        statistics = 100 * rows.groupby("keep_rate")["mAP"].agg(["mean", "std"])
        draw_means(axis, statistics.index.tolist(), statistics["mean"], statistics["std"], label, number)
        if len(tested) == 1 and "gflops" in rows:
            write_costs(axis, rows)
    done = alike(runs[runs["status"] == "finished"], runs[runs["run"].isin(found["run"])])
    trained = summarize(done, by=["keep_rate"], measures=["mAP_best"])
    if len(trained):
        label = rf"trained and tested at the same $\rho$ ({count(len(done))})"
        mean, deviation = 100 * trained["mAP_best_mean"], 100 * trained["mAP_best_std"]
        draw_means(axis, trained["keep_rate"].tolist(), mean, deviation, label, 0, "--")
    axis.set(xlabel=r"keep rate $\rho$ at test", ylabel=AXES["mAP_last"][0])
    axis.margins(x=0.08)  # room for the labels of the points
    set_range(axis, "mAP")
    rates = sorted({*found["keep_rate"], *trained["keep_rate"]})
    axis.set_xticks(rates, [f"{rate:g}" for rate in rates])
    axis.invert_xaxis()
    decorate(axis)
    axis.legend(fontsize=9)
    return figure


def write_costs(axis: Axes, evaluations: pd.DataFrame) -> None:
    """Write the GFLOPs below every point of one training."""
    for rate, point in evaluations.groupby("keep_rate")[["mAP", "gflops"]].mean().dropna().iterrows():
        text, place = f"{point['gflops']:.3g} GFLOPs", (rate, 100 * point["mAP"])
        axis.annotate(text, place, xytext=(0, -14), textcoords="offset points", ha="center", fontsize=8)


def class_bars(gains: pd.DataFrame, first: str, second: str, notable: float = 0.05) -> Figure:
    """Draw the AP of every class in two settings, side by side (Fig. 9).

    Classes that gain or lose more than `notable` are bold, those whose AP at least doubles are green.

    Args:
        gains: Result of `evad.analysis.tables.class_gains`.
        first: Legend of the first setting.
        second: Legend of the second setting.
        notable: Change of AP, as a fraction of 1.
    """
    figure = Figure(figsize=(7.5, 1.4 + 0.36 * len(gains)), layout="constrained")
    axis = figure.subplots()
    y = np.arange(len(gains))
    for offset, name, label, shade in ((-0.2, "first", first, GREY), (0.2, "second", second, BLUE)):
        deviation, lines = 100 * gains[f"{name}_std"].fillna(0), {"elinewidth": 1, "ecolor": "0.2"}
        axis.barh(y + offset, 100 * gains[name], 0.38, xerr=deviation, error_kw=lines, color=shade, label=label)
    axis.set_yticks(y, gains["class"])
    for text, row in zip(axis.get_yticklabels(), gains.to_dict("records")):
        text.set_fontweight("bold" if abs(row["gain"]) > notable else "normal")
        text.set_color("green" if row["gain"] > 0 and row["second"] >= 2 * row["first"] else "black")
    axis.set(xlabel="AP@0.5 in %", xlim=(0, 100))
    axis.invert_yaxis()
    decorate(axis)
    figure.legend(loc="outside lower center", ncols=2)
    return figure


def class_gain_bars(gains: pd.DataFrame, first: str, second: str) -> Figure:
    """Draw how much AP every class gains in the second setting, sorted (Fig. 10)."""
    figure = Figure(figsize=(7.5, 1.4 + 0.3 * len(gains)), layout="constrained")
    axis = figure.subplots()
    points = 100 * gains["gain"]
    bars = axis.barh(gains["class"], points, color=[GREEN if gain >= 0 else ORANGE for gain in points])
    axis.bar_label(bars, [f"{gain:+.1f}" for gain in points], padding=3, fontsize=9)
    axis.axvline(0, color="black", linewidth=0.8)
    axis.set(xlabel="change of AP@0.5 in percentage points", title=f"{second}, compared with {first}")
    axis.title.set_fontsize(10)
    axis.margins(x=0.15)
    axis.invert_yaxis()
    decorate(axis)
    return figure


def plot_learning_curve(metrics: pd.DataFrame, path: Path) -> Figure | None:
    """Draw the learning curve of one run into the file `path`; None if neither a loss nor a score was logged.

    Args:
        metrics: Result of `evad.runs.folders.read_metrics`.
        path: The picture, in the run folder.
    """
    run = RunFolder(path.parent, metrics=metrics)
    if (table := curve(run)).empty:
        return None
    figure = learning_curves(table, pd.DataFrame({"run": [run.path.as_posix()]}))
    figure.savefig(path, dpi=120)
    return figure


def plot_training_cost(table: pd.DataFrame, path: Path) -> Figure:
    """Draw memory (MiB) and time of training steps by keep rate and image size into the file `path` (Fig. 6)."""
    steps = table.rename(columns={"size": "image_size", "clips_per_s": "train_clips_per_s"}).assign(status="finished")
    figure = cost_bars(groups(steps, ["image_size"]))
    figure.savefig(path, dpi=120)
    return figure
