"""Objects are built by an allow-list: everything this package's configuration names, and nothing a stranger's does."""

import re

import pytest
import torch
from omegaconf import OmegaConf

from evad.config import conf_dir
from evad.models.postprocess import PostProcess
from evad.runs.build import ALLOWED, RefusedTargetError, build
from evad.runs.config import LARGEST_FILE, RefusedConfigError, pin, read_config

EXECUTED = []


def canary(**_):
    EXECUTED.append(True)


@pytest.fixture(autouse=True)
def nothing_executed():
    EXECUTED.clear()
    yield
    assert not EXECUTED


def test_the_list_is_what_the_configuration_files_name():
    named = set()
    for path in conf_dir().rglob("*.yaml"):
        named |= set(re.findall(r"_target_: ([\w.]+)", path.read_text()))
    hydra = {"evad.sweeps.callback.SweepCallback"}  # built by Hydra itself, from our own file
    assert named - hydra == ALLOWED | {"torch.optim.AdamW"}


def test_parts_are_built_first_and_partial_ones_wait_for_their_arguments():
    tree = {
        "_target_": "evad.training.module.Recipe",
        "optimizer": {"_target_": "torch.optim.SGD", "_partial_": True, "momentum": 0.5},
        "schedule": {"_target_": "evad.training.optim.StepSchedule", "milestones": [1, 2]},
        **dict.fromkeys(("base_lr", "base_batch", "weight_decay", "head_lr_scale"), 1),
        "loss_weights": {"_target_": "evad.training.module.LossWeights", "action": 4},
    }
    recipe = build(OmegaConf.create(tree))
    assert recipe.loss_weights.action == 4
    assert recipe.schedule.milestones == (1, 2)
    (group,) = recipe.optimizer([torch.zeros(1)], lr=0.25).param_groups
    assert (group["momentum"], group["lr"]) == (0.5, 0.25)


@pytest.mark.parametrize(
    "target",
    [
        "pandas.read_pickle",
        "os.system",
        "builtins.eval",
        "tests.test_runs_build.canary",
        "evad.models.evad.nn.Linear",  # what a module imports is not its own
        "evad.data.mini.store.run_jobs",
        "torch.optim.lr_scheduler.LambdaLR",
        "torch.optim.Optimizer.__class__",
        "torch.load",
        "",
        None,
        ["evad.models.postprocess.PostProcess"],
    ],
)
@pytest.mark.parametrize("where", [lambda node: node, lambda node: {"a": [{"b": node}]}])
def test_everything_else_is_refused_wherever_it_stands(target, where):
    postprocess = {"_target_": "evad.models.postprocess.PostProcess", "score": where({"_target_": target})}
    with pytest.raises(RefusedTargetError, match=r"score.* is refused.*nothing was run.*trust="):
        build(postprocess)


def test_trusted_modules_are_built(monkeypatch):
    monkeypatch.syspath_prepend(str(conf_dir().parent))
    node = {"_target_": "fractions.Fraction", "numerator": 1, "denominator": 2}
    with pytest.raises(RefusedTargetError, match="trust=fractions"):
        build(node)
    assert build(node, trust="fractions") == build(node, trust=["other", "fractions"]) == 0.5
    with pytest.raises(RefusedTargetError):
        build(node, trust="fraction")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"scores": "action"}, "unexpected keyword argument 'scores'"), ({"score": "both"}, "'both' is neither")],
)
def test_wrong_arguments_are_named_with_the_class(arguments, message):
    with pytest.raises(ValueError, match=message):
        build({"_target_": "evad.models.postprocess.PostProcess", **arguments})
    assert isinstance(build({"_target_": "evad.models.postprocess.PostProcess"}), PostProcess)


def saved(folder, text):
    (folder / "config.yaml").write_text(text)
    return folder


def test_a_runs_file_keeps_its_interpolations_and_says_nothing_about_hydra_or_trust(tmp_path):
    text = "a: ${b}\nb: ${div:6,3}\nhydra: {job: {chdir: true}}\ntrust: os\ndefaults: [x]\nn: '${hydra:job.name}'\n"
    config = read_config(saved(tmp_path, text))
    assert set(config) == {"a", "b", "n"}
    assert config.a == 2


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "x${oc.env:HOME,y}z",
        "${oc.decode:'${oc.env:HOME}'}",
        "${div:${oc.env:SIX},3}",
        "${${name}:HOME}",
        "${num_labels:/etc,null,passwd}",
        "[${oc.env:HOME}]",
    ],
)
def test_a_runs_file_calls_no_function_that_could_read_something(tmp_path, value):
    OmegaConf.save({"name": "oc.env", "data": {"list": ["fine", value]}}, tmp_path / "config.yaml")
    with pytest.raises(RefusedConfigError, match=r"config\.yaml, data\.list\[1\]"):
        read_config(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a\n", "holds a list"),
        ("a: [", "cannot be read"),
        ("a: ${b", "cannot be read"),
        ("a: !!python/object/apply:os.system [true]", "cannot be read"),
        (f"a: {'x' * LARGEST_FILE}", "bytes; a configuration has at most"),
    ],
)
def test_files_that_are_no_configuration_are_refused(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        read_config(saved(tmp_path, text))


def test_missing_configuration_is_an_error_that_says_where(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no config\.yaml: give a run folder"):
        read_config(tmp_path)


def test_a_pinned_section_keeps_its_values_when_others_are_exchanged():
    config = OmegaConf.create(
        {
            "data": {"classes": 8, "sampler": {"frames": 16}},
            "model": {
                "classes": "${data.classes}",
                "frames": "${data.sampler.frames}",
                "rate": 0.7,
                "net": ["${model.rate}"],
            },
        }
    )
    pin(config, "model")
    config.data, config.model.rate = {}, 0.5
    assert OmegaConf.to_container(config.model, resolve=True) == {"classes": 8, "frames": 16, "rate": 0.5, "net": [0.5]}
