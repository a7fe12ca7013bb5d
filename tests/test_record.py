"""The record of a run: what it says, and who writes it."""

import pandas as pd
import pytest
from omegaconf import OmegaConf

from evad.runs.files import RECORD, read_record
from evad.runs.folders import best_epoch
from evad.runs.record import recorded, save_config, write_record


def test_record_says_how_a_run_went(tmp_path):
    metrics = pd.DataFrame({"epoch": [0, 1, 2], "step": [1, 3, 5], "val/mAP": [0.1, 0.3, 0.2], "val/AP/1": 0.0})
    with recorded(tmp_path, ["seed=1"], "abc") as record:
        assert read_record(tmp_path)["status"] == "running"
        metrics.to_csv(tmp_path / "metrics.csv", index=False)
        record["value"] = 0.3
    found = read_record(tmp_path)
    assert found.pop("seconds") >= 0
    best = {"epoch": 1, "val/mAP": 0.3}
    same = {"overrides": ["seed=1"], "config": "abc"}
    assert found == {"status": "finished", "attempts": 1, "value": 0.3, "best": best, **same}
    with pytest.raises(ValueError, match="no"), recorded(tmp_path, ["seed=1"], "abc"):
        raise ValueError("no")
    found = read_record(tmp_path)
    found.pop("seconds")
    assert found == {"status": "failed", "attempts": 2, "error": "ValueError: no", **same}


@pytest.mark.parametrize(
    ("ranks", "first"),
    [
        ({}, True),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "8", "LOCAL_RANK": "0"}, False),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "SLURM_PROCID": "3"}, True),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_only_the_first_of_several_processes_writes(tmp_path, monkeypatch, ranks, first):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, rank in ranks.items():
        monkeypatch.setenv(name, rank)
    save_config(OmegaConf.create({"seed": 1}), tmp_path)
    write_record(tmp_path, {"status": "running"})
    names = {"config.yaml", "config.resolved.yaml", "run.json"} if first else set()
    assert {path.name for path in tmp_path.iterdir()} == names


def test_best_epoch_is_found_where_a_resume_moved_the_metrics(tmp_path):
    (tmp_path / "metrics.0.csv").write_text("epoch,val/mAP\n0,0.5\n1,0.25\n")
    assert best_epoch(tmp_path) == {"epoch": 0, "val/mAP": 0.5}
    assert best_epoch(tmp_path / "nothing") == {}


def test_unreadable_record_is_none(tmp_path):
    assert read_record(tmp_path) == {}
    (tmp_path / RECORD).write_text('{"status": "fin')
    assert read_record(tmp_path) == {}
