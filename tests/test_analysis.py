"""Run analysis on run folders written by hand: what is read, what is averaged, and that no run goes missing."""

import json
import math
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from evad.analysis import (
    Summaries,
    curves,
    describe,
    evaluations,
    per_class,
    read_runs,
    read_wandb_export,
    summarize,
)
from evad.analysis.wandb_export import COLUMNS
from evad.config import load_config
from evad.train import flat_parameters

NAN = float("nan")


def test_a_run_is_one_row_with_settings_quality_and_cost(tmp_path, write_run):
    run = write_run(tmp_path / "run", epochs=[(0.2, 0.5), (0.4, 0.75), (0.3, 0.8)], seed=7)
    frame = read_runs(run)
    assert math.isnan(frame.pop("seconds").item())  # this run.json does not have them
    assert math.isnan(frame.pop("attempts").item())
    assert frame.to_dict("records") == [
        {
            "run": run.as_posix(),
            "name": "mini",
            "status": "finished",
            "seed": 7,
            "keep_rate": 0.7,
            "w_kf": 1.0,
            "roi_extension": "0.4, 0.2",
            "decoder_depth": 2,
            "context_order": "position",
            "fill": "mask_token",
            "image_size": 64,
            "epochs": 3,
            "max_epochs": 3,
            "mAP_last": 0.3,
            "mAP_best": 0.4,
            "best_epoch": 2,
            "person_AP_last": 0.8,
            "person_AP_best": 0.75,
            "gflops": 0.25,
            "train_clips_per_s": 11.0,
            "peak_memory_mb": 102,
            "evaluations": 0,
            "problems": "",
        }
    ]


def test_runs_are_found_at_any_depth_in_natural_order_and_once(tmp_path, write_run):
    names = ["sweep/2", "sweep/10", "other/deep/er/run"]
    for name in names:
        write_run(tmp_path / name)
    (tmp_path / "sweep" / "multirun.yaml").write_text("hydra: {}\n")
    write_run(tmp_path / "sweep/2/eval/2026")  # everything in an evaluation is part of its run
    found = read_runs(tmp_path / "sweep", tmp_path, tmp_path / "sweep" / "10")
    assert found["run"].tolist() == [(tmp_path / name).as_posix() for name in names]


def test_swept_keys_and_parts_are_columns_where_runs_differ(tmp_path, write_run):
    settings = [("linear", 0.1, 4), ("decoder", 0.2, 4)]
    for number, (classifier, weight, workers) in enumerate(settings):
        extra = f"recipe:\n  weight: {weight}\n  workers: {workers}\n"
        folder = write_run(tmp_path / str(number), extra=extra)
        overrides = [
            f"model/classifier={classifier}",
            f"+recipe.weight={weight}",
            f"recipe.workers={workers}",
            "seed=0",
        ]
        (folder / "run.json").write_text(json.dumps({"status": "finished", "overrides": overrides, "seconds": 12.5}))
    frame = read_runs(tmp_path)
    assert frame["classifier"].tolist() == ["linear", "decoder"]
    assert frame["recipe.weight"].tolist() == [0.1, 0.2]
    assert frame["seconds"].tolist() == [12.5, 12.5]
    assert "recipe.workers" not in frame  # the same everywhere
    assert not {"pruning", "keyframe", "decoder_input"} & set(frame.columns)  # no run says anything about them


def test_a_part_chosen_by_its_key_is_one_column(tmp_path, write_run):
    for value in ("preserved", "all"):
        folder = write_run(tmp_path / value, extra="")
        config = folder / "config.resolved.yaml"
        config.write_text(config.read_text().replace("model:\n", f"model:\n  decoder_input: {value}\n"))
        record = {"status": "finished", "overrides": [f"model.decoder_input={value}"]}
        (folder / "run.json").write_text(json.dumps(record))
    frame = read_runs(tmp_path)
    assert sorted(frame["decoder_input"]) == ["all", "preserved"]
    assert "model.decoder_input" not in frame


def test_experiments_are_told_apart_and_a_resumed_run_is_of_the_one_it_is_named_after(tmp_path, write_run):
    for number, overrides in enumerate([["+experiment=mini"], ["experiment='other'"], ["resume=0"]]):
        record = {"status": "finished", "overrides": overrides}
        (write_run(tmp_path / str(number)) / "run.json").write_text(json.dumps(record))
    assert read_runs(tmp_path)["experiment"].tolist() == ["mini", "other", "mini"]


def test_parts_are_named_by_choice_then_key_then_class(tmp_path, write_run):
    parts = ["  pruning: random\n", "  pruning:\n    _target_: evad.models.pruning.KeyframePruning\n", ""]
    for number, part in enumerate(parts):
        folder = write_run(tmp_path / str(number))
        config = folder / "config.resolved.yaml"
        config.write_text(config.read_text().replace("model:\n", "model:\n" + part))
    (tmp_path / "2" / ".hydra").mkdir()
    (tmp_path / "2" / ".hydra" / "hydra.yaml").write_text(
        "hydra:\n  runtime:\n    choices:\n      model/pruning: none\n"
    )
    assert read_runs(tmp_path)["pruning"].tolist() == ["random", "mean_attention", "none"]


def test_groups_that_hydra_knows_of_a_resume_are_not_those_of_the_run(tmp_path, write_run):
    hydra = write_run(tmp_path / "run") / ".hydra"
    hydra.mkdir()
    choices = "hydra:\n  runtime:\n    choices:\n      model/pruning: random\n  overrides:\n    task:\n"
    (hydra / "hydra.yaml").write_text(f"{choices}    - seed=1\n")
    assert read_runs(tmp_path)["pruning"].tolist() == ["random"]
    (hydra / "hydra.yaml").write_text(f"{choices}    - resume=outputs/run\n")
    assert "pruning" not in read_runs(tmp_path)


def test_a_resumed_run_is_read_from_all_its_parts_and_a_repeated_epoch_counts_once(tmp_path, write_run, write_metrics):
    run = write_run(tmp_path / "run", metrics=False)
    write_metrics(run / "metrics.0.csv", [(0.1, 0.1), (0.2, 0.2)])
    write_metrics(run / "metrics.1.csv", [(0.5, 0.9)], first=1)
    write_metrics(run / "metrics.csv", [(0.4, 0.8)], first=2)
    row = read_runs(run).iloc[0]
    assert (row["status"], row["epochs"], row["mAP_last"], row["mAP_best"], row["best_epoch"]) == (
        "finished",
        3,
        0.4,
        0.5,
        2,
    )
    assert curves(run)[["epoch", "mAP"]].values.tolist() == [[1, 0.1], [2, 0.5], [3, 0.4]]


def test_every_broken_run_has_a_row_that_says_what_is_wrong(tmp_path, write_run, write_metrics):
    write_run(tmp_path / "0")
    write_run(tmp_path / "1", status="running", metrics=False)
    interrupted = write_run(tmp_path / "2", status="running", metrics=False)
    write_metrics(interrupted / "metrics.0.csv", [(0.1, 0.2)])
    failed = write_run(tmp_path / "3", epochs=[(0.3, 0.3)])
    (failed / "run.json").write_text(
        '{"status": "failed", "overrides": ["seed=1"], "error": "ValueError: too\\n few", "seconds": 3}'
    )
    (write_run(tmp_path / "4", status="running") / "metrics.csv").write_text("")
    died_at_once = tmp_path / "5"
    died_at_once.mkdir()
    (died_at_once / "run.json").write_text('{"status": "running", "overrides": ["seed=1"]}')
    torn = write_run(tmp_path / "6")
    (torn / "run.json").write_text('{"status": "fini')
    (torn / "config.resolved.yaml").write_text("name: [mini\n")
    never = write_run(tmp_path / "7", epochs=[])
    (never / "metrics.csv").write_text("epoch,step,train/loss\n0,1,2.5\n")

    frame = read_runs(tmp_path)
    running = ["running"] * 2
    assert frame["status"].tolist() == ["finished", *running, "failed", *running, "unknown", "finished"]
    problems = frame["problems"].tolist()
    assert problems[0] == ""
    assert problems[3] == "ValueError: too few"
    assert problems[1] == problems[2] == "metrics.csv is missing"
    assert problems[4] == "metrics.csv cannot be read: No columns to parse from file"
    assert problems[5] == "no configuration; metrics.csv is missing"
    assert problems[6].startswith("run.json cannot be read: ")
    assert "config.resolved.yaml cannot be read: " in problems[6]
    assert problems[7] == "never validated"
    assert frame["mAP_last"].tolist() == pytest.approx([0.4, NAN, 0.1, 0.3, NAN, NAN, 0.4, NAN], nan_ok=True)

    report = describe(frame).splitlines()
    assert report[0] == "8 runs: 4 running, 2 finished, 1 failed, 1 unknown"
    assert [line.split(":")[0].strip() for line in report[1:]] == frame["run"].tolist()[1:]


def test_a_torn_part_is_named_and_the_others_count(tmp_path, write_run):
    run = write_run(tmp_path / "run")
    (run / "metrics.0.csv").write_text("epoch,val/mAP\n0,0.9\n1,0.2,77,88\n")
    row = read_runs(run).iloc[0]
    assert row["problems"].startswith("metrics.0.csv cannot be read: ")
    assert (row["epochs"], row["mAP_last"]) == (2, 0.4)


def test_an_evaluation_or_benchmark_folder_is_no_run(tmp_path, write_run):
    write_run(tmp_path / "run")
    for job, leaves in [("evaluation", ["eval.log", "metrics.json"]), ("benchmark", ["benchmark.log"])]:
        (tmp_path / job / ".hydra").mkdir(parents=True)
        for leaf in leaves:
            (tmp_path / job / leaf).write_text("{}")
    assert read_runs(tmp_path)["run"].tolist() == [(tmp_path / "run").as_posix()]


def test_folders_without_runs_are_errors_that_name_them(tmp_path, write_run):
    write_run(tmp_path / "run")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match=r"nothing holds no run.*metrics\.csv"):
        read_runs(tmp_path / "run", tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match=r"no folder .*nowhere"):
        read_runs(tmp_path / "nowhere")


def test_per_class_has_last_and_best_epoch_in_order_of_ids(tmp_path, write_run):
    write_run(tmp_path / "0", epochs=[(0.5, 0.5), (0.3, 0.5)])
    write_run(tmp_path / "1", metrics=False)
    frame = per_class(tmp_path)
    assert frame["class"].tolist() == ["wave", "jump"]
    assert frame["AP_last"].tolist() == [0.2, 0.4]
    assert frame["AP_best"].tolist() == [0.4, 0.6]
    assert list(per_class(tmp_path / "1").columns) == list(frame.columns)


def test_curves_average_the_losses_of_an_epoch(tmp_path, write_run):
    run = write_run(tmp_path / "run")
    assert curves(run).to_dict("records") == [
        {"run": run.as_posix(), "epoch": 1, "train_loss": 2.5, "mAP": 0.2, "person_AP": 0.5},
        {"run": run.as_posix(), "epoch": 2, "train_loss": 1.5, "mAP": 0.4, "person_AP": 0.75},
    ]


def test_evaluations_keep_trained_and_tested_keep_rate_apart(tmp_path, write_run):
    run = write_run(tmp_path / "run")
    report = {"mAP": 0.25, "person_AP": 0.5, "keep_rate": 0.9, "gflops": 0.3, "per_class": {"wave": 0.1}}
    for name, text in [("rates/best_0.9", json.dumps(report)), ("torn", "{")]:
        (run / "eval" / name).mkdir(parents=True)
        (run / "eval" / name / "metrics.json").write_text(text)
    frame = evaluations(run)
    assert frame["evaluation"].tolist() == ["eval/rates/best_0.9", "eval/torn"]
    assert frame.loc[0, ["trained_keep_rate", "keep_rate", "mAP", "gflops", "problems"]].tolist() == [
        0.7,
        0.9,
        0.25,
        0.3,
        "",
    ]
    assert frame.loc[1, "problems"].startswith("metrics.json cannot be read")
    assert read_runs(run)["evaluations"].tolist() == [2]
    assert evaluations(write_run(tmp_path / "plain")).empty


def test_summary_is_mean_sample_deviation_and_count_of_finished_runs(tmp_path, write_run):
    last = {1.0: [0.5, 0.7], 0.7: [0.4]}
    for rate, values in last.items():
        for seed, value in enumerate(values):
            write_run(tmp_path / f"{rate}_{seed}", epochs=[(0.1, 0.1), (value, 0.9)], keep_rate=rate, seed=seed)
    write_run(tmp_path / "broken", status="running", epochs=[(0.9, 0.9)], keep_rate=0.7, seed=1)
    table = summarize(read_runs(tmp_path), by=["keep_rate"])
    assert table["keep_rate"].tolist() == [0.7, 1.0]
    assert table["runs"].tolist() == [1, 2]
    assert table["unfinished"].tolist() == [1, 0]
    assert table["mAP_last_mean"].tolist() == pytest.approx([0.4, 0.6])
    assert table["mAP_last_std"].tolist() == pytest.approx([NAN, math.sqrt(0.02)], nan_ok=True)
    assert table["mAP_last_n"].tolist() == [1, 2]


def test_summary_keeps_groups_without_a_finished_run_and_missing_settings():
    runs = pd.DataFrame({"status": ["failed", "finished"], "keep_rate": [None, 0.7], "mAP_last": [0.9, 0.5]})
    table = summarize(runs, by=["keep_rate"], measures=["mAP_last"])
    assert table["keep_rate"].tolist() == pytest.approx([0.7, NAN], nan_ok=True)
    assert table["unfinished"].tolist() == [0, 1]
    assert table["mAP_last_mean"].tolist() == pytest.approx([0.5, NAN], nan_ok=True)


def test_summary_by_an_unknown_column_names_the_known_ones():
    with pytest.raises(ValueError, match="no column colour; there are status, mAP_last"):
        summarize(pd.DataFrame({"status": [], "mAP_last": []}), by=["colour"], measures=["mAP_last"])


def test_wandb_export_has_the_columns_of_read_runs(tmp_path, write_run):
    (tmp_path / "export.csv").write_text(
        '"Name","State","Runtime","Tags","seed","name","model/keep_rate","model/roi_extension","val/mAP","cost/gflops"\n'
        '"mini","finished","61","","0","mini","0.7","[0.4, 0.2]","0.5","0.25"\n'
        '"mini-2","crashed","7","","1","mini","1","[0.4, 0.2]","",""\n'
    )
    frame = read_wandb_export(tmp_path / "export.csv")
    assert frame["status"].tolist() == ["finished", "failed"]
    assert frame["run"].tolist() == ["mini", "mini-2"]
    assert frame["roi_extension"].tolist() == ["0.4, 0.2"] * 2
    assert frame["problems"].tolist() == ["", "no val/mAP"]
    assert set(frame.columns) < set(read_runs(write_run(tmp_path / "run")).columns)
    table = summarize(frame, by=["keep_rate"])
    assert table["mAP_last_mean"].tolist() == pytest.approx([0.5, NAN], nan_ok=True)
    assert table["unfinished"].tolist() == [0, 1]


def test_wandb_export_understands_nested_configurations_and_maxima(tmp_path):
    (tmp_path / "export.csv").write_text(
        "ID,Name,State,model.keep_rate,model.pruning,data.image_size,val/mAP,val/mAP.max\n"
        "x1,mini,finished,0.7,KeyframePruning,224,0.5,0.75\n"
    )
    frame = read_wandb_export(tmp_path / "export.csv")
    columns = ["run", "name", "keep_rate", "pruning", "image_size", "mAP_best"]
    assert frame.loc[0, columns].tolist() == ["x1", "mini", 0.7, "mean_attention", 224, 0.75]


def test_what_the_loggers_are_told_is_what_an_export_is_read_by():
    told = flat_parameters(load_config(["experiment=ava_vitb"]))
    read = {name for names in COLUMNS.values() for name in names}
    assert {key for key in told if key not in read} == {"model/localization", "data/batch_size"}
    assert told["data/image_size"] == 288


def test_a_csv_that_is_no_wandb_export_is_refused(tmp_path):
    (tmp_path / "export.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"no column State, val/mAP, only a, b: show it"):
        read_wandb_export(tmp_path / "export.csv")


def test_summaries_survive_a_folder_of_csv_files(tmp_path, write_run):
    for number, part in enumerate(["none", "random"]):
        (write_run(tmp_path / f"runs/{number}") / "run.json").write_text(
            json.dumps({"status": "finished", "overrides": [f"model/pruning={part}"]})
        )
    write_run(tmp_path / "runs/2", metrics=False)
    before = Summaries.of(tmp_path / "runs")
    assert [path.name for path in before.write(tmp_path)] == [
        *("runs.csv", "per_class.csv", "curves.csv", "evaluations.csv")
    ]
    after = Summaries.read(tmp_path)
    assert after.runs["pruning"].tolist()[:2] == ["none", "random"]
    assert describe(after.runs) == describe(before.runs)
    for name in ("runs", "per_class", "curves", "evaluations"):
        pd.testing.assert_frame_equal(getattr(before, name), getattr(after, name), check_dtype=False)
    (tmp_path / "curves.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"lacks curves\.csv: write them with scripts/make_figures\.py"):
        Summaries.read(tmp_path)


ANALYSIS = "evad.analysis, evad.analysis.figures, evad.analysis.tables, evad.analysis.token_figures"


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (ANALYSIS, {"torch", "lightning", "hydra"}),
        ("evad.runs.folders, evad.runs.record", {"torch", "lightning", "hydra"}),
        ("evad.runs.files, evad.runs.names", {"torch", "lightning", "hydra", "pandas"}),
        ("evad.runs.checkpoints", {"lightning", "hydra", "pandas"}),
    ],
)
def test_modules_load_no_more_than_they_need(modules, heavy):
    program = f"import sys, {modules}; print(*({heavy} & set(sys.modules)))"
    root = Path(__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
