"""Commands that start from a run: its configuration is data, other groups can replace it, and help explains keys."""

import json
import sys

import pytest
import torch
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

from evad import eval as evaluation
from evad import export, predict, train
from evad.analysis.open import open_run
from evad.commandline import as_text, described_keys, help_text, in_frames
from evad.config import conf_dir, load_config
from evad.models.evad import EVAD
from evad.runs.build import RefusedTargetError, build_model
from evad.training.build import absolute_paths

COMMANDS = sorted(path.stem for path in conf_dir().glob("*.yaml"))


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run folder as training leaves it, with random weights."""
    folder = tmp_path_factory.mktemp("run")
    data = [f"data.root={folder}/data", "data.train_clips=2", "data.val_clips=3", "data.num_workers=0"]
    cfg = load_config(["logger=csv", "callbacks.progress=null", "trainer=cpu", "model.decoder_depth=1", *data])
    absolute_paths(cfg)
    OmegaConf.save(cfg, folder / "config.yaml")
    (folder / "checkpoints").mkdir()
    model = build_model(cfg)
    torch.save(
        {"state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}}, folder / "checkpoints/best.ckpt"
    )
    names = ("stand", "walk", "run", "jump", "squat", "wave", "clap", "watch")
    (folder / "classes.json").write_text(json.dumps({str(i): name for i, name in enumerate(names, 1)}))
    return folder


@pytest.fixture
def call(monkeypatch, tmp_path):
    """`call(module, *arguments)`: run a command in this process, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")

    def run(module, *arguments):
        monkeypatch.setattr(sys, "argv", [module.__name__, *arguments])
        module.main()
        assert sys.argv == [module.__name__, *arguments]

    return run


def poisoned(run_dir, folder):
    """A copy of the run's configuration whose transform names a function that reads a pickle."""
    folder.mkdir(exist_ok=True)
    (folder / "checkpoints").mkdir()
    for name in ("best", "last"):
        (folder / f"checkpoints/{name}.ckpt").write_bytes((run_dir / "checkpoints/best.ckpt").read_bytes())
    cfg = OmegaConf.load(run_dir / "config.yaml")
    cfg.data.root = str(folder)
    cfg.data.val_transform.short_side = {"_target_": "pandas.read_pickle", "filepath_or_buffer": "evil.pkl"}
    OmegaConf.save(cfg, folder / "config.yaml")
    return folder


def test_a_run_that_names_another_class_is_refused_by_every_command(run_dir, tmp_path, call, monkeypatch):
    def executed(*_, **__):
        raise AssertionError("executed")

    monkeypatch.setattr("pandas.read_pickle", executed)
    folder = poisoned(run_dir, tmp_path / "stranger")
    (tmp_path / "clip.mp4").touch()
    checkpoint = f"ckpt_path={folder}/checkpoints/best.ckpt"
    message = r"data\.val_transform\.short_side names 'pandas\.read_pickle', which is refused.*nothing was run"
    lines = {evaluation: (), predict: ("video=clip.mp4",), export: ("export.size=[48,64]",)}
    for module, options in lines.items():
        with pytest.raises(SystemExit, match=message):
            call(module, checkpoint, *options)
    with pytest.raises(SystemExit, match=message):
        call(train, f"resume={folder}")
    with pytest.raises(RefusedTargetError, match=message):
        open_run(folder)


def test_a_run_cannot_trust_itself(run_dir, tmp_path, call):
    folder = poisoned(run_dir, tmp_path / "stranger")
    text = (folder / "config.yaml").read_text().replace("trust: null", "trust: pandas")
    (folder / "config.yaml").write_text(text)
    with pytest.raises(SystemExit, match="is refused"):
        call(evaluation, f"ckpt_path={folder}/checkpoints/best.ckpt")


def test_a_runs_sections_replace_nothing_of_hydras(run_dir, tmp_path, call):
    folder = poisoned(run_dir, tmp_path / "stranger")
    cfg = OmegaConf.load(run_dir / "config.yaml")
    cfg.hydra = {"job_logging": {"root": {"level": "CRITICAL"}}, "run": {"dir": str(tmp_path / "elsewhere")}}
    OmegaConf.save(cfg, folder / "config.yaml")
    call(evaluation, f"ckpt_path={folder}/checkpoints/best.ckpt", "examples=0", "decompose=false", "hydra.run.dir=here")
    assert (tmp_path / "here/metrics.json").is_file()
    assert not (tmp_path / "elsewhere").exists()


def test_a_checkpoint_is_evaluated_on_other_data(run_dir, tmp_path, call):
    """With its own clip length, size and number of classes, whatever the other data's defaults are."""
    videos = tmp_path / "own/videos"
    videos.mkdir(parents=True)
    for video in sorted(run_dir.glob("data/**/videos/*.mp4")) or generated(run_dir):
        (videos / video.name).write_bytes(video.read_bytes())
    rows = ["video,time,x1,y1,x2,y2,label,split"]
    names = json.loads((run_dir / "classes.json").read_text()).values()
    for number, name in enumerate(names):
        rows.append(f"val_0000{number % 3},1,{4 + number},4,40,60,{name},{'val' if number % 3 else 'train'}")
    (tmp_path / "own/annotations.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "own/labels.txt").write_text("\n".join(names) + "\n")
    options = ["data=custom", f"data.root={tmp_path}/own", "data.num_workers=0", "examples=1", "hydra.run.dir=other"]
    call(evaluation, f"ckpt_path={run_dir}/checkpoints/best.ckpt", "model.keep_rate=0.8", *options)
    report = json.loads((tmp_path / "other/metrics.json").read_text())
    assert report["keep_rate"] == 0.8
    assert set(report["per_class"]) == set(names)
    assert not report["mixed_sizes"]
    used = OmegaConf.load(tmp_path / "other/.hydra/config.yaml")
    assert (used.model.num_classes, used.data.sampler.num_frames, used.data.val_transform.short_side) == (8, 8, 64)
    assert used.data.annotations == "annotations.csv"


def generated(run_dir):
    """The generated videos of the run's data set."""
    from evad.runs.build import build_part

    build_part(OmegaConf.load(run_dir / "config.yaml"), "data").prepare_data()
    return sorted(run_dir.glob("data/**/videos/*.mp4"))


def test_data_of_another_number_of_classes_are_an_error(run_dir, call):
    with pytest.raises(ValueError, match="the detector scores 8 classes, the data have 24"):
        call(evaluation, f"ckpt_path={run_dir}/checkpoints/best.ckpt", "data=ucf24")


def test_clips_of_other_data_span_the_same_seconds():
    assert in_frames(0.25, 2, 8) == 2
    assert in_frames(0.25, 2, 30) == 7.5
    assert in_frames(4 / 30, 4, None) == 4


@pytest.mark.parametrize("module", [evaluation, predict, export])
def test_a_command_without_a_checkpoint_says_what_it_needs(module, call):
    with pytest.raises(SystemExit, match=r"needs ckpt_path=<file>"):
        call(module)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_explains_every_key_of_a_command(command):
    keys = described_keys(conf_dir() / f"{command}.yaml")
    assert all(meaning for _, _, meaning in keys), [key for key, _, meaning in keys if not meaning]
    text = help_text("What it does.", command)
    assert text.startswith("What it does.")
    assert len(text.splitlines()) < 60
    for key, default, meaning in keys:
        assert f"{key}={default}" in text
        assert meaning in text


def test_help_names_groups_and_their_options(call, capsys):
    call(train, "--help")
    shown = capsys.readouterr().out
    assert "python -m evad.train experiment=ava_vitb" in shown
    assert "  model/pruning: cls_token, evit_fusion, mean_attention, none, pixel_difference" in shown
    assert "_target_" not in shown


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("data.frame_pattern={video}/img_%05d.jpg", r"data.frame_pattern='{video}/img_%05d.jpg'"),
        ("data.frame_pattern='{video}/a_%d.png'", "data.frame_pattern='{video}/a_%d.png'"),
        ("video=missing,file.mp4", "video=missing,file.mp4"),
        ("model.keep_rate=0.7,0.8", "model.keep_rate=0.7,0.8"),
    ],
)
def test_patterns_are_read_as_typed(typed, text):
    assert as_text(typed) == text


def test_paths_are_read_as_typed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    odd = "it's a=1, {2} (3).mp4"
    (tmp_path / odd).touch()
    assert as_text(f"video={odd}") == r"video='it\'s a=1, {2} (3).mp4'"


def test_frame_pattern_reaches_the_data_as_the_documentation_writes_it():
    cfg = load_config(["data=custom_ava", as_text("data.frame_pattern={video}/img_%05d.jpg")])
    assert cfg.data.frame_pattern == "{video}/img_%05d.jpg"


def test_nothing_of_a_run_stays_behind_for_the_training_command():
    assert "of_run" not in str(load_config([]))
    assert "train" not in ConfigStore.instance().repo


def test_mixed_precision_is_not_silently_left_out_of_a_program(run_dir, call):
    options = ["export.size=[48,64]", "trainer.precision=bf16-mixed"]
    with pytest.raises(ValueError, match=r"bf16-mixed: torch\.export cannot write mixed precision.*32-true"):
        call(export, f"ckpt_path={run_dir}/checkpoints/best.ckpt", *options)


def test_evaluation_and_its_pictures_run_in_the_trainers_precision(run_dir, call, monkeypatch):
    seen = []
    forward = EVAD.forward

    def noted(self, *inputs):
        seen.append(torch.is_autocast_enabled("cpu"))
        return forward(self, *inputs)

    monkeypatch.setattr(EVAD, "forward", noted)
    options = ["decompose=false", "examples=2", "hydra.run.dir=half", "trainer.precision=bf16-mixed"]
    call(evaluation, f"ckpt_path={run_dir}/checkpoints/best.ckpt", *options)
    assert seen == [True] * 3  # a batch and two pictures
