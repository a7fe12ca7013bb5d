"""Convert pretrained weights to a safetensors file with our names, and write the configuration they need.

    python scripts/convert_checkpoint.py SRC DST [KEY=VALUE ...]

SRC is a VideoMAE or VideoMAE V2 file (.pth), a Hugging Face VideoMAE folder or file, a released EVAD detector, or a
checkpoint of a run. DST is a .safetensors file in a new folder; `config.yaml` is written beside it. Then
`init_from=DST` reads the weights. If they belong to a whole detector, `python -m evad.eval ckpt_path=DST` works too.

The model (ViT-B or ViT-L), the number of classes and context_order are inferred from the weights. Give other keys as
for evad.train; the keep rate cannot be inferred, so give `model.keep_rate=...` if it is not 0.7.

Prints which weights were read, missing, unexpected or left out; a weight that does not fit is an error.
"""

from __future__ import annotations

import argparse
import re
import shutil
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from evad.config import conf_dir, load_config
from evad.models.weights.importers import LAYOUT_KEY, ORDER_KEY, OUR_RUN, TABLE, PretrainedWeights, read_pretrained
from evad.models.weights.loading import Report, initialise
from evad.runs.build import build_model
from evad.runs.checkpoints import run_of_checkpoint
from evad.runs.config import read_config
from evad.runs.files import CLASSES, CONFIG
from evad.training.build import absolute_paths

# File of conf/model -> experiment with the matching configuration.
EXPERIMENTS = {"vitb": "ava_vitb", "vitl": "ava_vitl", "mini": "mini"}


def model_choice(weights: PretrainedWeights) -> str:
    """The file of conf/model with the encoder's width and depth; ValueError if no file has them."""
    patches = weights.state.get("encoder.patch_embed.proj.weight")
    width = 0 if patches is None else patches.shape[0]
    numbers = [int(match[1]) for name in weights.state if (match := re.match(r"encoder\.blocks\.(\d+)\.", name))]
    depth = max(numbers, default=-1) + 1
    sizes = {}
    for path in sorted((conf_dir() / "model").glob("*.yaml")):
        encoder = OmegaConf.load(path).net.encoder
        sizes[path.stem] = (encoder.dim, encoder.depth)
    for name, size in sizes.items():
        if size == (width, depth) and name in EXPERIMENTS:
            return name
    known = ", ".join(f"{name} ({size[0]}, {size[1]})" for name, size in sizes.items())
    raise ValueError(
        f"{weights.path}: the encoder has width {width} and depth {depth}, but conf/model has only {known}; give an "
        "experiment by experiment=... and the dimensions by model.net.encoder.dim=..."
    )


def inferred_overrides(weights: PretrainedWeights) -> list[str]:
    """Overrides for the settings that can be inferred from the weights."""
    heads = [name for name in weights.state if re.fullmatch(r"classification\.decoder\.heads\.\d+\.3\.weight", name)]
    overrides = []
    if heads:
        queries = weights.state["localization.proposal_boxes"].shape[0]
        overrides += [
            f"model.num_classes={weights.state[heads[0]].shape[0]}",
            f"model.decoder_depth={len(heads)}",
            f"model.net.localization.num_queries={queries}",
        ]
    if weights.context_order is not None:
        overrides.append(f"model.context_order={weights.context_order}")
    return overrides


def config_of(source: Path, weights: PretrainedWeights, overrides: list[str]) -> DictConfig:
    """The configuration of the checkpoint's run, or of the experiment that fits weights from elsewhere."""
    if weights.layout == OUR_RUN:
        saved = read_config(run_of_checkpoint(source))
        return OmegaConf.merge(saved, OmegaConf.from_dotlist(overrides))  # type: ignore[return-value]
    chosen = any(override.startswith("experiment=") for override in overrides)
    experiment = [] if chosen else [f"experiment={EXPERIMENTS[model_choice(weights)]}"]
    return load_config([*experiment, *inferred_overrides(weights), *overrides])


def convert(source: Path, target: Path, overrides: list[str]) -> tuple[Report, DictConfig]:
    """Write `target` and the `config.yaml` beside it; returns the report on the weights, and the configuration.

    Raises:
        FileExistsError: if one of the two files exists.
        ValueError: if the weights do not fit the configuration.
    """
    if target.suffix != ".safetensors":
        raise ValueError(f"DST {target} must end in .safetensors")
    for path in (target, target.parent / CONFIG):
        if path.exists():
            raise FileExistsError(f"{path} exists: choose a new folder for DST")
    weights = read_pretrained(source)
    cfg = config_of(source, weights, overrides)
    model = build_model(cfg)
    report = initialise(model, weights)
    state = model.state_dict()
    names = [*report.loaded, *([TABLE] if TABLE in state else [])]
    metadata = {"format": "pt", LAYOUT_KEY: weights.layout}
    if any(name.startswith("classification.") for name in names):
        metadata[ORDER_KEY] = model.encoder.context_order
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: state[name].contiguous() for name in names}, target, metadata)
    absolute_paths(cfg)
    OmegaConf.save(cfg, target.parent / CONFIG)
    if weights.layout == OUR_RUN and (classes := run_of_checkpoint(source) / CLASSES).is_file():
        shutil.copy(classes, target.parent)
    return report, cfg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="SRC")
    parser.add_argument("target", type=Path, metavar="DST")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    try:
        report, cfg = convert(args.source, args.target, args.overrides)
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        parser.exit(1, f"convert_checkpoint: {error}\n")
    print(report.summary())
    print(f"wrote {args.target} and {args.target.parent / CONFIG}:")
    print(f"  keep_rate {cfg.model.keep_rate} (a setting, not inferred), context_order {cfg.model.context_order}")


if __name__ == "__main__":
    main()
