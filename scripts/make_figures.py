"""Make the figures and tables of the paper from some runs (Figs 1, 4, 6-12, Tables 1-3), and say why any is missing.

    python scripts/make_figures.py RUN_OR_SWEEP... --out DIR

Writes runs.csv, per_class.csv, curves.csv, evaluations.csv, table.md and a PNG per figure. Figures of tokens show the
checkpoint of the first finished run that prunes; they need the data of that run.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from evad.analysis import Summaries, describe
from evad.analysis.figures import (
    class_bars,
    class_gain_bars,
    effect_of,
    keep_rate_at_test,
    learning_curves,
    training_cost,
)
from evad.analysis.open import OpenRun, first_pruning_run, open_run
from evad.analysis.tables import change_table, class_gains, comparable, groups, markdown, other_settings, varying
from evad.analysis.token_figures import area_share_figure, attention_figure, survival_figure
from evad.analysis.tokens import actor_attention, actors_of_interest, gt_area_shares, slice_images, token_survival
from evad.structures import Batch

KEEP_RATES = (1.0, 0.9, 0.8, 0.7)
"""Rows of Fig. 12."""


class Folder:
    """Writes figures into a folder and notes which could not be made."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.made: list[str] = []
        self.skipped: list[str] = []
        path.mkdir(parents=True, exist_ok=True)

    def draw(self, name: str, make: Callable[[], Figure]) -> None:
        """Write `name`.png, or note why it cannot be made."""
        try:
            make().savefig(self.path / f"{name}.png", dpi=130)
        except (ValueError, FileNotFoundError) as error:
            self.skipped.append(f"{name}: {error}")
        else:
            self.made.append(f"{name}.png")


def figures_of_runs(out: Folder, runs: pd.DataFrame) -> None:
    """Draw the effect of each setting that varies and the cost of training, and write table.md."""
    settings = varying(runs)
    for setting in settings:
        out.draw(
            f"effect_{setting.replace('/', '_').replace('.', '_')}", lambda setting=setting: effect_of(runs, setting)
        )
    out.draw("training_cost", lambda: training_cost(runs))
    column = "keep_rate" if "keep_rate" in settings or not settings else settings[0]
    reference = 1.0 if column == "keep_rate" else runs[column].iloc[0]
    table = change_table(runs, column, reference, other_settings(runs, column))
    (out.path / "table.md").write_text(markdown(table) if len(table) else "No finished run.\n")
    out.made.append("table.md")


def figures_of_classes(out: Folder, runs: pd.DataFrame, classes: pd.DataFrame) -> None:
    """Draw AP per class at the largest and the smallest keep rate, with all else equal (Figs 9, 10)."""
    compared = comparable(runs[runs["status"] == "finished"])
    split = groups(compared, varying(compared))

    def gains() -> tuple[pd.DataFrame, str, str]:
        if len(split) < 2:
            raise ValueError("all finished runs have the same settings, so no two can be compared class by class")
        first, second = next(reversed(split)), next(iter(split))
        return class_gains(classes, split[first]["run"].tolist(), split[second]["run"].tolist()), first, second

    out.draw("per_class", lambda: class_bars(*gains()))
    out.draw("per_class_gain", lambda: class_gain_bars(*gains()))


def figures_of_tokens(out: Folder, runs: pd.DataFrame, clips: int) -> None:
    """Draw surviving tokens, area shares and attention for the first finished run that prunes."""
    run = cache(lambda: open_run(first_pruning_run(runs)))
    for number in range(clips):
        out.draw(f"tokens_{number}", lambda number=number: survival(run(), number, clips))
        out.draw(f"attention_{number}", lambda number=number: attention(run(), number, clips))
    out.draw("area_share", lambda: area_share_figure(gt_area_shares(run().model, run().datamodule.val_dataloader())))


def clip_number(run: OpenRun, number: int, count: int) -> int:
    """Index of clip `number` of `count` clips that are evenly spaced among the clips with actors."""
    keyframes = run.datamodule.val_dataset.keyframes
    with_actors = [index for index, keyframe in enumerate(keyframes) if len(keyframe.boxes)]
    if not with_actors:
        raise ValueError("no validation clip has an actor")
    return with_actors[int(np.linspace(0, len(with_actors) - 1, count)[number])]


def pictures(run: OpenRun, number: int, count: int) -> tuple[Batch, np.ndarray]:
    """Clip `number` of `count` (see `clip_number`), and one picture per time slice."""
    batch = run.clip(clip_number(run, number, count))
    return batch, slice_images(batch.clips[0], run.model.encoder.patch_embed.tubelet, tuple(batch.sizes[0].tolist()))


def survival(run: OpenRun, number: int, count: int) -> Figure:
    """Figs 1, 4 and 11."""
    batch, images = pictures(run, number, count)
    alive = token_survival(run.model, batch.clips)[0].numpy()
    return survival_figure(images, alive, run.model.encoder.patch_embed.patch, batch.targets[0].boxes.tolist())


def attention(run: OpenRun, number: int, count: int) -> Figure:
    """Fig. 12: the same weights at several keep rates."""
    batch, images = pictures(run, number, count)
    maps = {}
    for rate in KEEP_RATES:
        found = actor_attention(run.with_keep_rate(rate), batch)
        actors = actors_of_interest(found.output, batch)[0]
        label = "all tokens" if rate == 1 else f"keep rate {rate:g}"
        maps[label] = found.on_grid()[0, actors].mean(dim=0).numpy()
    return attention_figure(images, maps, run.model.encoder.patch_embed.patch, batch.targets[0].boxes.tolist())


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN_OR_SWEEP")
    parser.add_argument("--out", type=Path, default=Path("figures"), help="folder to write to (default: figures)")
    parser.add_argument("--clips", type=int, default=2, help="clips to show in figures of tokens (default: 2)")
    options = parser.parse_args(arguments)
    try:
        found = Summaries.of(*options.folders)
    except (ValueError, FileNotFoundError) as error:
        sys.exit(f"error: {error}")
    print(describe(found.runs))
    out = Folder(options.out)
    out.made += [path.name for path in found.write(out.path)]
    out.draw("learning_curves", lambda: learning_curves(found.curves, found.runs))
    figures_of_runs(out, found.runs)
    out.draw("keep_rate_at_test", lambda: keep_rate_at_test(found.evaluations, found.runs))
    figures_of_classes(out, found.runs, found.per_class)
    figures_of_tokens(out, found.runs, options.clips)
    print(f"{out.path}: {', '.join(out.made)}")
    for reason in out.skipped:
        print(f"not made: {reason}")


if __name__ == "__main__":
    main()
