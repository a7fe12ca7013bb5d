"""conf/ablation: every table's file only lists values, and each of its jobs composes and builds."""

import copy
import re
import shlex
from functools import cache

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from evad.config import conf_dir, load_config
from evad.runs.build import build_model
from evad.runs.names import job_name

FILES = sorted((conf_dir() / "ablation").glob("*.yaml"))
# number of jobs without seeds
JOBS = {
    "classifier": 6,
    "context_order": 2,
    "decoder_depth": 5,
    "decoder_input": 2,
    "fill": 2,
    "image_size": 6,
    "keep_rate": 5,
    "keyframe": 2,
    "pruning": 4,
    "reducers": 4,
    "roi_extension": 8,
    "w_kf": 5,
}


def commands(path):
    """Overrides of the documented command lines."""
    text = re.sub(r"\\\n#", "", path.read_text())
    return [shlex.split(line)[4:] for line in re.findall(r"python -m evad\.train --multirun .*", text)]


COMMANDS = [pytest.param(path.stem, line, id=" ".join(line)) for path in FILES for line in commands(path)]


def jobs_of(table, line):
    """Overrides of every job of a command line, as Hydra's sweeper expands them."""
    params = OmegaConf.load(conf_dir() / f"ablation/{table}.yaml").hydra.sweeper.params
    given = OverridesParser.create().parse_overrides([*(f"{key}={value}" for key, value in params.items()), *line])
    (jobs,) = BasicSweeper.split_arguments(given, max_batch_size=None)
    return jobs


def test_every_table_is_there_with_its_number_of_jobs():
    assert {path.stem: len(jobs_of(path.stem, [])) for path in FILES} == JOBS
    assert len(COMMANDS) == 2 * len(JOBS) + 1


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_file_lists_values_and_names_the_sweep_and_does_nothing_else(path):
    """Else jobs of the same name would differ: the ablation is no part of the name."""
    content = OmegaConf.to_container(OmegaConf.load(path))
    assert content.pop("sweep") == f"${{name}}_{path.stem}"
    assert list(content) == ["hydra"]
    assert {name: list(values) for name, values in content["hydra"].items()} == {"sweeper": ["params"]}


@pytest.mark.parametrize(("table", "line"), COMMANDS)
def test_every_job_of_a_documented_line_composes_and_models_build(table, line):
    jobs = jobs_of(table, line)
    assert len({job_name(job) for job in jobs}) == len(jobs)
    jobs = [job for job in jobs if "seed=1" not in job and "seed=2" not in job]
    for job in jobs:
        cfg = composed(job)
        assert cfg.sweep == f"{cfg.name}_{table}"
        if job in (jobs[0], jobs[-1]) or any(override.startswith("model/") for override in job):
            with torch.device("meta"):
                build_model(cfg)


def composed(job):
    """As `load_config`, which takes half a second, for jobs that differ in keys only."""
    keys = [override for override in job if "." in override.partition("=")[0]]
    cfg = copy.deepcopy(groups_composed(*(override for override in job if override not in keys)))
    for override in OverridesParser.create().parse_overrides(keys):
        OmegaConf.update(cfg, override.key_or_group, override.value())
    return cfg


groups_composed = cache(lambda *overrides: load_config(list(overrides)))


def test_sweeper_gets_the_values():
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("train", ["ablation=w_kf"], return_hydra_config=True)
    assert cfg.hydra.sweeper.params == {"model.w_kf": "1,2,4,6,8", "model.keep_rate": "0.6"}


def test_miniature_ablations_start_from_an_encoder_trained_on_other_clips():
    pretraining, ablation = (load_config([f"experiment={name}"]) for name in ("mini_pretrain", "mini_ablation"))
    with torch.device("meta"):
        encoders = [build_model(cfg).encoder.state_dict() for cfg in (pretraining, ablation)]
    theirs, ours = ({name: value.shape for name, value in state.items()} for state in encoders)
    assert theirs == ours
    assert (pretraining.model.keep_rate, ablation.init_part) == (1.0, "encoder")
    assert pretraining.data.generator_seed != ablation.data.generator_seed
    assert pretraining.data.root != ablation.data.root
