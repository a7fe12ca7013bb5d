"""Pages: their commands are valid, their links lead somewhere, the README's table is what the configuration says."""

import contextlib
import importlib.util
import io
import json
import re
import runpy
import shlex
import shutil
import sys
from functools import cache
from itertools import zip_longest
from pathlib import Path

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from evad.commandline import store_run
from evad.config import conf_dir, load_config
from evad.metrics.cost import paper_macs
from evad.runs.build import build_model
from evad.training.build import absolute_paths

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "notebooks").rglob("*.md")),
]
# Tells of names that are no more, too.
HISTORY = ROOT / "CHANGELOG.md"
COMMANDS = {f"evad.{name}": name for name in ("train", "eval", "predict", "export", "benchmark")} | {
    "evad.data.check": "check"
}
# Modules that are run, on fixtures under the names that the pages use.
RUN = ("evad.metrics.ava", "evad.metrics.tubes", "evad.files.tubes", "evad.data.mini")
FIXTURES = {
    "gt.csv": "ava_small_clean/groundtruth.csv",
    "det.csv": "ava_small_clean/detections.csv",
    "map.pbtxt": "label_map_60.pbtxt",
    "JHMDB-GT.pkl": "tubes_jhmdb_like/JHMDB-GT.pkl",
    "det_tubes.csv": "tubes_jhmdb_like/frame_detections.csv",
}
# The commands quote these values themselves, so that they may hold any character.
FILE_KEYS = ("ckpt_path", "video", "resume", "data.frame_pattern")


@pytest.fixture(scope="module", autouse=True)
def run_to_start_from(tmp_path_factory):
    """A run's configuration, which evad.eval, predict and export start from."""
    folder = tmp_path_factory.mktemp("run")
    cfg = load_config([])
    absolute_paths(cfg)
    OmegaConf.save(cfg, folder / "config.yaml")
    store_run(folder, pinned=True)


def names(pages):
    return [str(page.relative_to(ROOT)) for page in pages]


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def shell_lines(page):
    text = "\n".join(blocks(page, "bash"))
    lines = re.sub(r"\\\n\s*", "", text).splitlines()
    return [line for line in lines if shlex.split(line, comments=True)]


def inline_code(page):
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    return re.findall(r"`([^`\n]+)`", text)


def inline_commands(page):
    return [code for code in inline_code(page) if re.match(r"(python|pip|make) ", code) and "..." not in code]


LINES = list(dict.fromkeys(line for page in PAGES for line in [*shell_lines(page), *inline_commands(page)]))


def words(line):
    """Program and arguments, without environment variables before them."""
    tokens = shlex.split(line, comments=True)
    while re.match(r"[A-Z_]+=", tokens[0]):
        tokens = tokens[1:]
    return tokens


@cache
def composed(name, *overrides) -> DictConfig:
    return load_config(list(overrides), name)


def quoted(override):
    key, _, value = override.partition("=")
    return f"{key}='{value}'" if key in FILE_KEYS else override


def combinations(overrides):
    """Override lists that hold every choice of a swept group at least once, and of a swept key one value."""
    columns = []
    for override in OverridesParser.create().parse_overrides(overrides):
        if not override.is_sweep_override():
            columns.append([override.input_line])
        elif override.is_interval_sweep():
            columns.append([f"{override.key_or_group}={override.value().start}"])
        else:
            values = [f"{override.key_or_group}={value}" for value in override.sweep_string_iterator()]
            columns.append(values if (conf_dir() / override.key_or_group).is_dir() else values[:1])
    longest = max(map(len, columns), default=1)
    return [[column[min(i, len(column) - 1)] for column in columns] for i in range(longest)]


def is_of_missing_plugin(override):
    return bool(re.match(r"hydra[./](launcher|sweeper)", override)) and not importlib.util.find_spec("hydra_plugins")


def check_hydra_command(module, arguments):
    """Compose what is typed."""
    if "--help" not in arguments:
        overrides = [quoted(text) for text in arguments if "=" in text and not is_of_missing_plugin(text)]
        for combination in combinations(overrides):
            composed(COMMANDS[module], *combination)


def run_module(module, arguments, folder, monkeypatch):
    """Run a module as `python -m` does, in a folder with the fixtures; what it prints."""
    for name, source in FIXTURES.items():
        shutil.copy(ROOT / "tests/fixtures/eval" / source, folder / name)
    monkeypatch.chdir(folder)
    return run(lambda: runpy.run_module(module, run_name="__main__", alter_sys=True), module, arguments, monkeypatch)


def run(program, name, arguments, monkeypatch):
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    output = io.StringIO()
    code = None
    with contextlib.redirect_stdout(output):
        try:
            program()
        except SystemExit as end:
            code = end.code
    assert code in (None, 0), f"{name} {arguments}: {code}"
    return output.getvalue()


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize("line", LINES)
def test_command_is_valid(line, tmp_path, monkeypatch):
    program, *arguments = words(line)
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    elif program == "pip":
        assert arguments[0] == "install"
        if extra := re.search(r"\[(\w+)\]", line):
            assert re.search(rf"^{extra[1]} = \[", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    elif program == "jupyter":
        assert arguments[0] == "lab"
        assert (ROOT / arguments[1]).is_dir()
    elif program == "pre-commit":
        assert arguments == ["install"]
        assert (ROOT / ".pre-commit-config.yaml").is_file()
    elif program == "python" and arguments[0] == "-m" and arguments[1] in COMMANDS:
        check_hydra_command(arguments[1], arguments[2:])
    elif program == "python" and arguments[0] == "-m":
        assert arguments[1] in RUN, f"no test of {line}"
        if not arguments[2:]:  # a module named in a sentence
            return
        if arguments[1] == "evad.data.mini" and not (ROOT / "evad/data/mini/__main__.py").is_file():
            pytest.skip("evad.data.mini cannot be run yet")
        printed = run_module(arguments[1], arguments[2:], tmp_path, monkeypatch)
        if arguments[1].startswith("evad.metrics"):
            assert json.loads(printed)
    else:
        assert program == "python", f"no test of {line}"
        assert (ROOT / arguments[0]).is_file()
        options = [text for text in arguments[1:] if text.startswith("--")]
        assert all(option in script_help(arguments[0]) for option in options)


@cache
def script_help(path):
    with pytest.MonkeyPatch.context() as monkeypatch:
        return run(lambda: runpy.run_path(str(ROOT / path), run_name="__main__"), path, ["--help"], monkeypatch)


def keys_of(cfg):
    """Every key of a configuration, inner ones and groups of keys."""

    def walk(tree, prefix):
        for key, value in tree.items():
            yield prefix + str(key)
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")

    return set(walk(OmegaConf.to_container(cfg), ""))


@cache
def all_keys():
    """Keys that some choice of data and model has, of any command."""
    options = [[f"{group}={path.stem}" for path in sorted((conf_dir() / group).glob("*.yaml"))] for group in GROUPS]
    choices = [[choice for choice in row if choice] for row in zip_longest(*options)]
    configs = [composed(command) for command in COMMANDS.values()]
    return set().union(*map(keys_of, [*configs, *(composed("train", *row) for row in choices)]))


GROUPS = ("data", "model/classifier", "model/localization", "recipe", "trainer", "logger")
TOP_KEYS = "model|data|recipe|trainer|predict|export|benchmark|paths|logger|callbacks|postprocess"


def is_file_name(code):
    return bool(re.search(r"\.(py|csv|json|yaml|png|md)$", code))


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_settings_named_in_a_page_exist(page):
    for code in inline_code(page):
        parts = [re.fullmatch(r"'?([a-z_][\w./]*)=(\S+)", part) for part in code.split()]
        for key, value in (part.groups() for part in parts if part) if all(parts) else ():
            if (conf_dir() / key).is_dir():
                assert "..." in value or (conf_dir() / key / f"{value}.yaml").is_file(), code
            else:
                assert key in all_keys() or key.startswith("hydra."), code
        if re.fullmatch(rf"({TOP_KEYS})\.\w+(\.\w+)*", code) and not is_file_name(code):
            assert code in all_keys(), code
        elif re.fullmatch(r"(model|recipe)/\w+", code):
            assert (conf_dir() / code).is_dir(), code


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_modules_named_in_a_page_exist(page):
    for code in inline_code(page):
        if re.fullmatch(r"evad(\.\w+)+", code) and not is_file_name(code):
            assert importlib.util.find_spec(code), code
        elif re.fullmatch(r"(evad|scripts|conf|tests|notebooks|docs)/[\w./]*", code):
            assert (ROOT / code).exists(), code


def anchors(page):
    headings = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.M | re.S), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", [*PAGES, HISTORY], ids=names([*PAGES, HISTORY]))
def test_links_lead_to_files_and_headings(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", page.read_text()):
        if re.match(r"\w+:", target):
            continue
        path = page.parent / target if target else page
        assert path.exists(), target
        if anchor:
            assert anchor in anchors(path), f"{target}#{anchor}"


def test_readme_is_at_most_a_thousand_words():
    assert len(README.read_text().split()) <= 1000


def readme_experiments():
    rows = re.findall(r"^\| `(\w+)`[^|]*\| ([^|]+?), (\d+) \| ([\d.]+) \| ([\d.]+) \|", README.read_text(), flags=re.M)
    return [pytest.param(*row, id=row[0]) for row in rows]


def test_readme_has_a_table_of_experiments():
    assert len(readme_experiments()) >= 10


@pytest.mark.parametrize(("experiment", "backbone", "pixels", "keep_rate", "gflops"), readme_experiments())
def test_table_of_experiments_is_what_the_configuration_says(experiment, backbone, pixels, keep_rate, gflops):
    cfg = composed("train", f"experiment={experiment}")
    size = int(pixels)
    with torch.device("meta"):
        model = build_model(cfg)
    assert cfg.data.val_transform.short_side == size
    assert cfg.model.keep_rate == float(keep_rate)
    assert f"{sum(paper_macs(model, cfg.model.num_frames, size, size).values()) / 1e9:.1f}" == gflops
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    widths = {768: "ViT-B", 1024: "ViT-L"}
    assert widths.get(model.encoder.patch_embed.proj.out_channels, f"{millions:.1f} M") == backbone


def test_every_experiment_and_ablation_is_named_in_a_page():
    text = "\n".join(page.read_text() for page in PAGES)
    for group in ("experiment", "ablation"):
        for path in (conf_dir() / group).glob("*.yaml"):
            assert re.search(rf"\b{path.stem}\b", text), path.stem


def test_findings_of_the_validator_are_those_of_the_page():
    table = (ROOT / "docs/data.md").read_text().partition("| finding |")[2]
    documented = set(re.findall(r"`([a-z0-9-]+)`", re.sub(r"\|[^|]*\|$", "", table, flags=re.M)))
    source = "\n".join(path.read_text() for path in (ROOT / "evad/data").rglob("*.py"))
    assert len(documented) > 25
    assert not {name for name in documented if f'"{name}"' not in source}


@pytest.mark.parametrize("page", PAGES, ids=names(PAGES))
def test_python_blocks_are_python(page):
    for code in blocks(page, "python"):
        compile(code, str(page), "exec")


def test_the_model_block_prints_what_it_says(capsys):
    (code,) = [code for code in blocks(ROOT / "docs/python.md", "python") if "paper_macs" in code]
    exec(code, {})
    assert f"# {float(capsys.readouterr().out):.1f}" in code


@pytest.mark.parametrize("name", ["CITATION.cff", ".pre-commit-config.yaml"])
def test_top_level_yaml_files_are_yaml(name):
    assert OmegaConf.load(ROOT / name)
