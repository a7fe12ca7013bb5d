"""The notebooks as a reader opens them: from a clean clone, and on a sweep of their own."""

import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def execute(path, monkeypatch, runs=""):
    """Run every cell in a fresh kernel; returns what was printed and how many pictures were shown."""
    for name, value in {"PYTHONPATH": str(ROOT), "EVAD_RUNS": runs, "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(path.parent)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    pictures = sum("image/png" in output.get("data", {}) for output in outputs)
    return "".join(output.get("text", "") for output in outputs), pictures


def test_there_are_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["analyze_runs", "per_class", "token_pruning"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_committed_without_outputs_and_name_no_machine(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    assert "EVAD_RUNS" in notebook.cells[1].source  # parameters come first
    assert max(cell.source.count("\n") for cell in notebook.cells) < 30


@pytest.mark.slow
@pytest.mark.parametrize(("name", "least"), [("analyze_runs", 4), ("per_class", 3), ("token_pruning", 5)])
def test_notebook_runs_without_any_run(name, least, monkeypatch):
    printed, pictures = execute(ROOT / "notebooks" / f"{name}.ipynb", monkeypatch)
    assert pictures >= least  # which settings the shipped summaries vary is their matter
    assert ("no run was given" in printed) == (name == "token_pruning")


@pytest.mark.slow
def test_analyze_runs_reads_a_fresh_sweep(tmp_path, monkeypatch, short_training):
    sweep = ["model.keep_rate=0.7,1.0", "trainer.max_epochs=1", f"hydra.sweep.dir={tmp_path}/sweep"]
    subprocess.run(
        [sys.executable, "-m", "evad.train", "--multirun", *short_training[:-1], *sweep],
        cwd=tmp_path,
        env=os.environ | {"EVAD_DATA": str(tmp_path / "data"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
    printed, pictures = execute(ROOT / "notebooks/analyze_runs.ipynb", monkeypatch, runs=str(tmp_path / "sweep"))
    assert "2 runs: 2 finished" in printed
    assert "what differs: keep_rate" in printed
    assert "not drawn: no run was evaluated at two keep rates" in printed
    assert pictures == 4
