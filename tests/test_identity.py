"""Names and digests of runs: equal for runs that train the same, different for all others."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from evad.config import load_config
from evad.runs.names import LONGEST_NAME, config_digest, job_name


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "defaults"),
        (["sweep=trial", "logger=csv", "logger.wandb.mode=online", "data.num_workers=4"], "defaults"),
        (["seed=0", "model.keep_rate=0.7"], "keep_rate-0.7+seed-0"),
        (["model.roi_extension=[0.4, 0.2]"], "roi_extension-0.4_0.2"),
        (["model/pruning=random", "+model.w_kf='4'"], "w_kf-4+pruning-random"),
        (["data.train_transform.short_side=48"], "train_transform.short_side-48"),
        (["a.depth=1", "b.depth=2", "recipe.base_lr=1e-5"], "a.depth-1+b.depth-2+base_lr-1e-5"),
    ],
)
def test_name_says_what_a_job_changes(overrides, name):
    assert job_name(overrides) == name
    assert job_name(overrides[::-1]) == name


COMMAND = "trainer=cpu data=mini model/pruning=none seed=0 experiment=mini_ablation init_from=o/a.ckpt data.root=/a/b"


def test_name_leaves_out_what_all_jobs_of_a_sweep_share():
    constant = ["trainer", "data", "experiment", "init_from", "data.root"]
    assert job_name(COMMAND.split(), constant) == "pruning-none+seed-0"
    assert job_name(COMMAND.split()[:2], constant) == "defaults"


def test_a_digest_tells_jobs_apart_that_differ_in_what_the_name_leaves_out():
    here, there = (job_name(["seed=0", f"data={data}"], ["data"], with_digest=True) for data in ("mini", "ava"))
    assert here != there
    assert [name.rpartition("+")[0] for name in (here, there)] == ["seed-0", "seed-0"]


def test_names_differ_where_plain_characters_would_make_them_equal():
    overrides = [["init_from=a/b.pth"], ["init_from=a_b.pth"], ["init_from=a:b.pth"], ["data.root=" + 200 * "x"]]
    overrides.append(["data.root=" + 201 * "x"])
    names = {job_name(one) for one in overrides}
    assert len(names) == len(overrides)
    assert max(map(len, names)) <= LONGEST_NAME + 9


@pytest.mark.parametrize(
    "override", ["model.roi_extension=[0.4,0.2]", "init_from=/a b/$x=(1).pth", "recipe.base_lr=-1e-5"]
)
def test_name_needs_no_quotes_in_a_path_on_the_command_line(override):
    path = f"multirun/mini/{job_name([override, 'seed=0'])}/checkpoints/best.ckpt"
    assert OverridesParser.create().parse_override(f"ckpt_path={path}").value() == path


def test_digest_is_of_what_is_trained():
    digest = config_digest(load_config([]))
    for same in (["sweep=x"], ["logger=csv"], ["callbacks.progress=null"], ["data.num_workers=3"], ["data.root=/else"]):
        assert config_digest(load_config(same)) == digest
    for other in (["seed=1"], ["model.keep_rate=0.8"], ["data.batch_size=4"], ["trainer.max_epochs=6"]):
        assert config_digest(load_config(other)) != digest
