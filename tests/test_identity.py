"""Names and digests of runs: equal for runs that train the same, different for all others."""

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from evad.config import load_config
from evad.runs.names import LONGEST_NAME, config_digest, job_name
from evad.sweeps.callback import SweepCallback


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


def multirun(folder, command, **hydra):
    """What Hydra hands to the callback when a sweep of this command line starts in a folder."""
    overrides = {"task": command.split(), "hydra": []}
    return OmegaConf.create({"hydra": {"overrides": overrides, "sweep": {"dir": str(folder)}} | hydra})


def names_of(folder, command, jobs, **hydra):
    """Folder names that a sweep gives to jobs, each as Hydra composes it."""
    config = multirun(folder, command, **hydra)
    SweepCallback().on_multirun_start(config)
    parser = OverridesParser.create()
    added = parser.parse_overrides(OmegaConf.to_container(config.hydra.overrides.hydra))
    (subdir,) = (str(one.value()) for one in added if one.key_or_group == "hydra.sweep.subdir")
    return [OmegaConf.create({"hydra": {"overrides": {"task": job}}, "name": subdir}).name for job in jobs]


def test_listing_values_of_a_key_that_is_no_part_of_the_names_is_an_error(tmp_path):
    with pytest.raises(SystemExit, match=r"data\.num_workers=0,1.*would be the same"):
        SweepCallback().on_multirun_start(multirun(tmp_path, "data.num_workers=0,1"))
    config = multirun(tmp_path / "a b", "data.num_workers=1 seed=0,1 model.roi_extension=[0,0],[1,1]")
    SweepCallback().on_multirun_start(config)
    assert config.hydra.overrides.hydra[1] == f"hydra.sweep.dir='{tmp_path}/a b'"


REST = "experiment=mini_ablation trainer=cpu data=mini data.root=/a/b init_from=o/best.ckpt"


def test_jobs_are_named_by_what_the_sweep_changes(tmp_path):
    for rates in ("0.7,1.0", "1.0,0.7,0.8", "0.7"):  # in another order, with more values, with one of them
        command = f"{REST} seed=0,1 model.keep_rate={rates} logger=csv"
        jobs = [[*REST.split(), f"seed={seed}", "model.keep_rate=0.7"] for seed in (0, 1)]
        assert names_of(tmp_path / "rates", command, jobs) == ["keep_rate-0.7+seed-0", "keep_rate-0.7+seed-1"]
    jobs = [[*REST.split(), "model/pruning=none", "ablation=pruning"]]
    params = {"sweeper": {"params": {"model/pruning": "none,random"}}}  # as conf/ablation/pruning.yaml lists them
    assert names_of(tmp_path / "params", f"{REST} ablation=pruning", jobs, **params) == ["pruning-none"]
    assert names_of(tmp_path / "one", "seed=3 data=mini", [["seed=3", "data=mini"]]) == ["data-mini+seed-3"]


@pytest.mark.parametrize(
    ("other", "name"),
    [
        ("data=ava", "data-ava+seed-0"),
        ("data=mini init_from=a.pth", "init_from-a.pth+seed-0"),
        ("data=mini,ava", "data-mini+seed-0"),
        ("data=mini model.keep_rate=0.7", "keep_rate-0.7+seed-0"),
        ("", "seed-0+"),  # and a digest: a name cannot say what is not set
    ],
)
def test_a_later_sweep_of_a_folder_is_named_by_how_it_differs_from_the_first(tmp_path, other, name):
    def first():
        return names_of(tmp_path, "data=mini seed=0,1", [["data=mini", "seed=0"]])

    assert first() == ["seed-0"]
    job = ["seed=0", *other.replace(",ava", "").split()]
    (found,) = names_of(tmp_path, f"seed=0,1 {other}", [job])
    assert found == name if other else len(found) == len(name) + 8
    assert names_of(tmp_path, f"{other} seed=1,0", [job[::-1]]) == [found]
    assert names_of(tmp_path, f"{other} seed=0", [job]) == [found]
    assert first() == ["seed-0"]


def test_a_name_for_the_jobs_on_the_command_line_is_kept(tmp_path):
    config = multirun(tmp_path, "seed=0,1")
    config.hydra.overrides.hydra = ["hydra.sweep.subdir=mine"]
    SweepCallback().on_multirun_start(config)
    added = OmegaConf.to_container(config.hydra.overrides.hydra)
    assert added[1:] == ["hydra.sweep.subdir=mine", f"hydra.sweep.dir='{tmp_path}'"]  # of one key the last counts


def test_digest_is_of_what_is_trained():
    digest = config_digest(load_config([]))
    for same in (["sweep=x"], ["logger=csv"], ["callbacks.progress=null"], ["data.num_workers=3"], ["data.root=/else"]):
        assert config_digest(load_config(same)) == digest
    for other in (["seed=1"], ["model.keep_rate=0.8"], ["data.batch_size=4"], ["trainer.max_epochs=6"]):
        assert config_digest(load_config(other)) != digest
