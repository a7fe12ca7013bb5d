"""The commands as a user types them: train, resume, evaluate, predict, sweep."""

import json
import re
import shutil

import av
import pandas as pd
import pytest
import torch
from conftest import command
from omegaconf import OmegaConf

from evad.config import load_config
from evad.data.mini.ava import ensure_mini, mini_folder
from evad.metrics.cost import paper_macs
from evad.runs.build import build_model
from evad.runs.checkpoints import load_weights
from evad.runs.folders import read_metrics

pytestmark = pytest.mark.slow


def test_run_folder_is_self_contained(run_dir):
    files = {path.relative_to(run_dir).as_posix() for path in run_dir.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml",
        "config.resolved.yaml",
        "metrics.csv",
        "classes.json",
        "train.log",
        "learning_curve.png",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    }
    metrics = read_metrics(run_dir)
    for column in ["train/loss", "lr/encoder", "val/mAP", "val/person_AP", "val/AP/1", "cost/gflops"]:
        assert metrics[column].notna().any(), column
    macs = paper_macs(build_model(load_config(["experiment=mini"])), 8, 64, 64)
    assert metrics["cost/gflops"].dropna().unique() == pytest.approx([sum(macs.values()) / 1e9], rel=1e-6)


def test_resumed_run_keeps_its_folder_and_its_metrics(run_dir, workspace, tmp_path):
    run_dir = shutil.copytree(run_dir, tmp_path / "run")
    command("evad.train", f"resume={run_dir}", "trainer.max_epochs=3", cwd=workspace)
    epochs = read_metrics(run_dir).dropna(subset=["val/mAP"])["epoch"].tolist()
    assert epochs == [0, 1, 2]
    assert [OmegaConf.load(run_dir / name).trainer.max_epochs for name in ("config.0.yaml", "config.yaml")] == [2, 3]
    assert torch.load(run_dir / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 6


def test_evaluation_writes_detections_that_evaluate_to_the_same_number(run_dir, workspace):
    checkpoint = f"ckpt_path={run_dir}/checkpoints/last.ckpt"
    command("evad.eval", checkpoint, "model.keep_rate=0.8", "hydra.run.dir=evaluation", cwd=workspace)
    report = json.loads((workspace / "evaluation/metrics.json").read_text())
    assert report["keep_rate"] == 0.8
    assert len(list((workspace / "evaluation/frames").glob("*.png"))) == 3
    annotations = mini_folder(workspace / "data/mini", 8, 4) / "annotations"
    again = command(
        "evad.metrics.ava",
        f"--ground-truth={annotations}/val.csv",
        f"--detections={workspace}/evaluation/detections.csv",
        f"--label-map={annotations}/label_map.pbtxt",
        cwd=workspace,
    )
    assert json.loads(again.stdout)["mAP"] == pytest.approx(report["mAP"], abs=1e-6)  # logged as float32


def test_prediction_has_the_length_and_rate_of_the_video(run_dir, workspace):
    video = mini_folder(workspace / "data/mini", 8, 4) / "videos/val_00000.mp4"
    checkpoint = f"ckpt_path={run_dir}/checkpoints/last.ckpt"
    options = ["predict.person_threshold=0", "hydra.run.dir=prediction"]
    odd = workspace / "it's a=1, {2} (3)" / video.name  # characters of Hydra's grammar
    odd.parent.mkdir()
    odd.symlink_to(video)
    command("evad.predict", checkpoint, f"video={odd}", *options, cwd=workspace)
    with av.open(str(video)) as source, av.open(str(workspace / "prediction/val_00000.mp4")) as annotated:
        ours, theirs = annotated.streams.video[0], source.streams.video[0]
        assert ours.average_rate == theirs.average_rate
        assert sum(1 for _ in annotated.decode(ours)) == sum(1 for _ in source.decode(theirs))
    rows = pd.read_csv(workspace / "prediction/detections.csv")
    assert set(rows["frame"]) == set(range(0, 16, 2))  # 4 keyframes per second of an 8-fps video
    assert rows[["x1", "y1"]].min().min() >= 0
    assert rows[["x2", "y2"]].max().max() <= 64


def test_export_writes_a_program_and_says_what_goes_in(workspace, run_dir, refusal):
    options = [f"ckpt_path={run_dir}/checkpoints/last.ckpt", f"hydra.run.dir={workspace}/exported"]
    message = "give height and width of your videos: export.size=[360,640]"
    assert message in refusal("evad.export", *options)
    command("evad.export", *options, "export.size=[48,64]", cwd=workspace)
    description = json.loads((workspace / "exported/detector.json").read_text())
    assert description["input"]["shape"] == [1, 8, 48, 64, 3]
    assert description["input"]["seconds_between_frames"] == 0.25
    assert list(description["classes"].values())[-1] == "watch"
    program = torch.export.load(workspace / "exported/detector.pt2").module()
    boxes, persons, actions = program(torch.zeros(1, 8, 48, 64, 3, dtype=torch.uint8))
    assert boxes.shape == (1, 6, 4)
    assert persons.shape == (1, 6)
    assert actions.shape == (1, 6, 8)


def test_sweep_gives_one_complete_run_per_value(workspace, short_training):
    one_epoch = [*short_training[:-1], "trainer.max_epochs=1"]
    command(
        "evad.train", "--multirun", *one_epoch, "model.keep_rate=0.6,0.7,0.8", "hydra.sweep.dir=sweep", cwd=workspace
    )
    costs = []
    for job in sorted((workspace / "sweep").glob("keep_rate-*")):
        assert (job / "checkpoints/best.ckpt").is_file()
        costs.append(read_metrics(job)["cost/gflops"].dropna().item())
    assert len(costs) == 3
    assert costs == sorted(set(costs))


def test_two_processes_report_the_metrics_of_one(workspace, short_training):
    one_epoch = [*short_training[:-1], "trainer.max_epochs=1", "data.batch_size=2"]
    pair = ["trainer.devices=2", "trainer.strategy=ddp"]
    # 5 validation clips do not divide by 2: the sampler repeats one, which must not count twice.
    data = ["data.val_clips=5", f"data.root={workspace}/odd"]
    folder = workspace / "it's"  # the second process of a sweep's job has to find this path, too
    folder.mkdir()
    command("evad.train", "--multirun", *one_epoch, *data, *pair, "sweep=pair", "seed=0", cwd=folder)
    (run,) = (path.parent for path in folder.glob("multirun/pair/*/run.json"))
    logged = read_metrics(run)["val/mAP"].dropna().item()
    single = ["trainer.devices=1", "trainer.strategy=auto", "hydra.run.dir=single"]
    command("evad.eval", f"ckpt_path={run}/checkpoints/last.ckpt", *single, cwd=folder)
    assert json.loads((folder / "single/metrics.json").read_text())["mAP"] == pytest.approx(logged, abs=1e-7)


def test_checkpoint_of_another_architecture_is_refused(run_dir, workspace):
    model = build_model(load_config(["experiment=mini", "model.decoder_depth=1", "model.net.classification.dim=32"]))
    with pytest.raises(ValueError, match=r"does not fit the configured model.*unexpected.*other shape"):
        load_weights(model, run_dir / "checkpoints/last.ckpt")


def test_misspelt_key_is_an_error_that_names_it(refusal):
    assert "keeprate" in refusal("evad.train", "model.keeprate=0.7")


def test_misspelt_groups_and_keys_are_refused_where_a_run_gives_the_configuration(run_dir, tmp_path, refusal):
    checkpoint = f"ckpt_path={run_dir}/checkpoints/last.ckpt"
    before = (run_dir / "run.json").read_text()
    failed = refusal("evad.train", f"resume={run_dir}", "logger=tensorbord")
    assert re.search(r"Could not find 'logger/tensorbord'\s+Available options in 'logger':\s+csv\s+default", failed)
    assert (run_dir / "run.json").read_text() == before
    options = ["export.size=[48,64]", "export.batchsize=4", f"hydra.run.dir={tmp_path}"]
    assert "Could not override 'export.batchsize'" in refusal("evad.export", checkpoint, *options)


def test_missing_checkpoint_is_an_error_that_says_where(refusal):
    assert refusal("evad.eval", "ckpt_path=nowhere.ckpt").startswith("ckpt_path: no checkpoint at")


def test_paper_model_takes_a_training_and_a_validation_step_on_ava_layout(workspace):
    root = ensure_mini(workspace / "ava_like", train_clips=2, val_clips=1)
    layout = [
        f"data.root={root}",
        "+data.train_csv=train.csv",
        "+data.val_csv=val.csv",
        "+data.excluded_csv=null",
        "+data.label_map=label_map.pbtxt",
        "+data.valid_seconds=null",
        "data.video_start_second=0",
        "data.sampler.annotated_fps=8",
        "data.sampler.frame_stride=1",
        "data.num_workers=0",
    ]
    # The whole detector, on small clips and without its checkpoints of 2 GB; its cost at 224 pixels is counted below.
    run = ["experiment=ava_vitb_224", "debug=quick", "logger=csv", "data.train_transform.short_side=64"]
    run += ["+trainer.enable_checkpointing=false", "trainer.limit_train_batches=1"]
    run += [f"callbacks.{name}=null" for name in ("best", "last", "progress")]
    command("evad.train", *run, *layout, "hydra.run.dir=ava_run", cwd=workspace)
    metrics = read_metrics(workspace / "ava_run")
    assert metrics["train/loss"].notna().sum() == 1
    assert metrics["val/mAP"].notna().sum() == 1
    with torch.device("meta"):
        model = build_model(load_config(["experiment=ava_vitb_224"]))
    macs = {size: sum(paper_macs(model, 16, size, size).values()) for size in (64, 224)}
    assert metrics["cost/gflops"].dropna().item() == pytest.approx(macs[64] / 1e9, rel=1e-6)
    assert macs[224] / 1e9 == pytest.approx(134.51, rel=1e-4)
