"""Configuration: everything shipped composes and builds; sweepable keys reach their module and no other."""

import subprocess
import sys

import pytest
import torch
from hydra.errors import ConfigCompositionException
from omegaconf import OmegaConf

from evad.config import conf_dir, load_config
from evad.models.evad import EVAD
from evad.runs.build import build_model, build_part
from evad.runs.config import divide

EXPERIMENTS = sorted(path.stem for path in (conf_dir() / "experiment").glob("*.yaml"))
GROUPS = sorted({path.name for path in conf_dir().iterdir() if path.is_dir()} - {"experiment", "hydra", "paths"})


def test_there_are_experiments():
    assert {"mini", "ava_vitb"} <= set(EXPERIMENTS)


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiment_composes_and_its_model_builds(experiment):
    own = ["data.num_classes=3"] if experiment.startswith("custom") else []  # else counted in the user's files
    cfg = load_config([f"experiment={experiment}", *own])
    with torch.device("meta"):
        assert isinstance(build_model(cfg), EVAD)
    build_part(cfg, "recipe")
    build_part(cfg, "postprocess")
    without_hydra = {key: value for key, value in cfg.items() if key not in ("callbacks", "logger")}
    OmegaConf.to_container(OmegaConf.create(without_hydra), resolve=True, throw_on_missing=True)


@pytest.mark.parametrize("group", GROUPS)
def test_every_option_of_every_group_composes(group):
    for path in (conf_dir() / group).rglob("*.yaml"):
        option = path.relative_to(conf_dir())
        if option.parent.name == "common":  # blocks that options share, no options themselves
            continue
        load_config([f"{option.parent}={option.stem}"])


@pytest.mark.parametrize("key", ["model.keep_rat", "model.net.encoder.depht", "modell", "trainer.max_epoch"])
def test_misspelt_key_is_an_error_naming_it(key):
    with pytest.raises(ConfigCompositionException, match=f"'{key}"):
        load_config([f"{key}=1"])


def test_misspelt_option_of_a_group_is_an_error_listing_the_others():
    with pytest.raises(Exception, match=r"(?s)Could not find 'experiment/ava_vit'.*ava_vitb"):
        load_config(["experiment=ava_vit"])


def test_misspelt_choice_is_an_error_of_the_module(tiny_model):
    with pytest.raises(ValueError, match="context_order 'time' is neither 'position' nor 'score'"):
        tiny_model("model.context_order=time")


def test_models_need_neither_lightning_nor_hydra_nor_pandas():
    code = (
        "import importlib, pkgutil, sys, evad.models\n"
        "for module in pkgutil.walk_packages(evad.models.__path__, 'evad.models.'):\n"
        "    importlib.import_module(module.name)\n"
        "assert {'evad.models.evad', 'evad.models.heads.woo'} <= set(sys.modules)\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "sys.exit(', '.join(found & {'lightning', 'pytorch_lightning', 'hydra', 'omegaconf', 'pandas'}) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_plain_containers_reach_the_modules(tiny_model):
    """No OmegaConf object in a module: it would end up in checkpoints."""
    for module in tiny_model().modules():
        for name, value in vars(module).items():
            assert not OmegaConf.is_config(value), name


def modules_of(model):
    """Class, extra_repr and plain settings of every module, without tensors."""
    plain = (int, float, str, bool, tuple, list, type(None))
    return {
        name: (
            type(module).__name__,
            {key: value for key, value in vars(module).items() if isinstance(value, plain) and key != "training"},
            [tuple(p.shape) for p in module.parameters(recurse=False)],
        )
        for name, module in model.named_modules()
    }


def changed(tiny_model, override):
    """Names of modules that differ from the tiny detector's."""
    before, after = modules_of(tiny_model()), modules_of(tiny_model(override))
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def test_keep_rate_reaches_the_pruning_blocks_only(tiny_model):
    pruning = {f"encoder.blocks.{block}.pruning" for block in (1, 3, 4)}
    assert changed(tiny_model, "model.keep_rate=0.9") == pruning
    model = tiny_model("model.keep_rate=0.9")
    assert [block.pruning.keep_rate for block in model.encoder.blocks if block.pruning] == [0.9] * 3


def test_keyframe_weight_reaches_the_pruning_blocks_only(tiny_model):
    pruning = {f"encoder.blocks.{block}.pruning.score" for block in (1, 3, 4)}
    assert changed(tiny_model, "model.w_kf=4") == pruning
    model = tiny_model("model.w_kf=4")
    assert [block.pruning.score.w_kf for block in model.encoder.blocks if block.pruning] == [4] * 3


def test_roi_extension_reaches_the_classification_branch_only(tiny_model):
    assert changed(tiny_model, "model.roi_extension=[0.6,0.3]") == {"classification.roi"}
    assert tiny_model("model.roi_extension=[0.6,0.3]").classification.roi.extension == (0.6, 0.3)


def test_decoder_depth_reaches_the_decoder_only(tiny_model):
    names = changed(tiny_model, "model.decoder_depth=2")
    parts = ("classification.decoder.blocks", "classification.decoder.heads")
    assert names
    # One block fewer also means steeper drop path; the tiny one has none.
    assert all(name.startswith(parts) for name in names)
    assert {name.split(".")[3] for name in names} == {"2"}
    assert len(tiny_model("model.decoder_depth=2").classification.decoder.blocks) == 2


@pytest.mark.parametrize("model", ["vitb", "vitl", "mini"])
@pytest.mark.parametrize(
    ("option", "key"),
    [
        ("model/classifier=linear", "model.decoder_depth"),
        ("model/classifier=linear", "model.woo_depth"),
        ("model/classifier=woo", "model.decoder_dim"),
        ("model/classifier=decoder", "model.woo_dim"),
        ("model/localization=external", "model.num_queries"),
    ],
)
def test_key_of_a_part_that_was_not_chosen_is_an_error_naming_it(model, option, key):
    with pytest.raises(ConfigCompositionException, match=f"Could not override '{key}'"):
        load_config([f"model={model}", option, f"{key}=2"])


@pytest.mark.parametrize("model", ["vitb", "vitl", "mini"])
@pytest.mark.parametrize("name", ["decoder", "woo", "linear"])
def test_every_key_of_a_head_has_its_default_from_the_sizes_of_the_model(model, name):
    cfg = load_config([f"model={model}", f"model/classifier={name}"])
    own = {key: value for key, value in cfg.model.items() if key.startswith(("decoder_", "woo_"))}
    expected = {f"{name}_{size}": value for size, value in cfg.model.sizes.get(name, {}).items()}
    if name == "woo":
        expected["woo_queries"] = cfg.model.num_queries
    assert {key: value for key, value in own.items() if key != "decoder_input"} == expected


def test_mini_has_small_heads():
    decoder, woo = (load_config(["experiment=mini", f"model/classifier={name}"]).model for name in ("decoder", "woo"))
    assert (decoder.decoder_depth, decoder.decoder_dim, decoder.num_queries) == (2, 64, 6)
    assert (woo.woo_depth, woo.woo_dim, woo.woo_queries) == (2, 48, 6)
    assert load_config(["experiment=mini", "model/classifier=woo", "model/localization=external"]).model.woo_queries > 6


@pytest.mark.parametrize(
    ("override", "differing"),
    [
        ("model.keep_rate=0.9", "tokens"),
        ("model.w_kf=8", "kept"),
        ("model.roi_extension=[1.2,0.8]", "roi_features"),
        ("model.decoder_depth=2", "action_logits"),
    ],
)
def test_sweepable_key_changes_the_output_it_should(tiny_model, tiny_batch, override, differing):
    batch = tiny_batch()
    before, after = (tiny_model(*options).eval()(batch.clips, batch.sizes) for options in ([], [override]))

    def same(name):
        ours, theirs = getattr(before, name), getattr(after, name)
        if name == "kept":
            return all(torch.equal(a, b) for a, b in zip(ours, theirs))
        return ours.shape == theirs.shape and torch.equal(ours, theirs)

    assert not same(differing)
    if override.startswith(("model.roi", "model.decoder")):
        assert all(same(name) for name in ("tokens", "positions", "boxes", "person_logits", "kept"))
    assert same("roi_features") == (override == "model.decoder_depth=2")


def test_slices_of_the_position_tables_follow_the_clip():
    cfg = load_config(["experiment=mini", "data.sampler.num_frames=16"])
    model = build_model(cfg)
    assert model.encoder.positions.base_grid == model.classification.positions.base_grid == (8, 8, 8)


def test_odd_clip_length_is_an_error():
    with pytest.raises(Exception, match="7 is not a multiple of 2"):
        build_model(load_config(["experiment=mini", "data.sampler.num_frames=7"]))
    assert divide(6, 2) == 3
