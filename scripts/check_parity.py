"""Compare our detector with recorded outputs of the released one.

    python scripts/check_parity.py CASE_DIR...

A case folder holds `case.json` (configuration, seed, losses, gradient norms) and `expected.npz` (outputs). Weights are
generated from the seed and read by the importer of released checkpoints; the inputs are generated too. Prints one JSON
object per case; exits with 1 if an error exceeds the tolerance or other tokens were kept.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from evad.config import load_config
from evad.data.clips.collate import PaddingCollate
from evad.models.criterion import SetCriterion
from evad.models.weights.importers import rename_released_evad
from evad.runs.build import build_model
from evad.structures import Clip, EVADOutput, Target

# The reference program's configuration keys -> ours.
CONFIG_KEYS = {
    "ViT.EMBED_DIM": "model.net.encoder.dim",
    "ViT.DEPTH": "model.net.encoder.depth",
    "ViT.NUM_HEADS": "model.net.encoder.num_heads",
    "ViT.DROP_PATH_RATE": "model.net.encoder.drop_path",
    "MODEL.CRD.EMBED_DIM": "model.net.classification.dim",
    "MODEL.CRD.DEPTH": "model.decoder_depth",
    "MODEL.CRD.NUM_HEADS": "model.net.classification.decoder.num_heads",
    "MODEL.CRD.DROP_PATH_RATE": "model.net.classification.decoder.drop_path",
    "MODEL.SparseRCNN.NUM_PROPOSALS": "model.net.localization.num_queries",
    "MODEL.SparseRCNN.NUM_HEADS": "model.net.localization.num_stages",
    "MODEL.SparseRCNN.DIM_DYNAMIC": "model.net.localization.dim_dynamic",
    "MODEL.SparseRCNN.DIM_FEEDFORWARD": "model.net.localization.dim_feedforward",
    "MODEL.SparseRCNN.ACT_FC_DIM": "model.net.classification.decoder.hidden_dim",
    "MODEL.NUM_CLASSES": "model.num_classes",
}


def overrides_of(case: dict) -> list[str]:
    """Hydra overrides that turn our ViT-B or ViT-L into the case's model."""
    depth = len(case["keep_rate"])
    overrides = ["experiment=ava_vitb", f"model={'vitl' if depth == 24 else 'vitb'}"]
    for key, value in case["config"].items():
        if key == "ViT.FPN_INDICES":
            overrides.append(f"model.net.encoder.map_blocks={[index + 1 for index in value]}")
        elif key != "ViT.USE_CHECKPOINT":  # recomputation does not change the results
            overrides.append(f"{CONFIG_KEYS[key]}={value}")
    return [
        *overrides,
        f"model.keep_rate={case['keep_rate']}",
        f"model.w_kf={case['attentiveness_weight']}",
        f"model.context_order={case['token_order']}",
        f"model.roi_extension={case['roi_extension']}",
        f"model.num_frames={case['num_frames']}",
    ]


def generated_parameter(name: str, shape: list[int], seed: int) -> Tensor:
    """Generate a parameter of the released checkpoint; the values depend on its name and the seed."""
    rng = np.random.Generator(np.random.PCG64([seed, zlib.crc32(name.encode())]))
    if name == "criterion.empty_weight":
        return torch.tensor([1.0, 0.1], dtype=torch.float64)
    if name == "init_proposal_boxes.weight":
        centres = rng.uniform(0.2, 0.8, (shape[0], 2))
        return torch.from_numpy(np.hstack([centres, rng.uniform(0.2, 0.6, (shape[0], 2))]))
    noise = rng.standard_normal(shape)
    if len(shape) == 1:
        return torch.from_numpy(1 + 0.1 * noise if name.endswith("weight") else 0.02 * noise)
    gain = 2.0 if name.endswith("attn.qkv.weight") else 0.2 if "bboxes_delta" in name else 1.0
    return torch.from_numpy(gain * noise / np.sqrt(np.prod(shape[1:])))


def generated_clip(case: dict, index: int) -> Clip:
    """Generate clip `index` of the case with its training target."""
    height, width = case["sizes"][index]
    rng = np.random.Generator(np.random.PCG64([case["seed"], 1000 + index]))
    frames = torch.from_numpy(rng.standard_normal((3, case["num_frames"], height, width)))
    rng = np.random.Generator(np.random.PCG64([case["seed"], 2000 + index]))
    n = int(rng.integers(1, 4))
    centre = rng.uniform(0.3, 0.7, (n, 2))
    size = rng.uniform(0.15, 0.5, (n, 2))
    boxes = np.clip(np.hstack([centre - size / 2, centre + size / 2]), 0, 1) * [width, height, width, height]
    labels = (rng.uniform(size=(n, 80)) < 0.05).astype(float)
    labels[np.arange(n), rng.integers(0, 80, n)] = 1
    target = Target(torch.from_numpy(boxes), torch.from_numpy(labels))
    return Clip(frames, target, torch.tensor(index), torch.tensor([height, width]))


def named_outputs(output: EVADOutput) -> dict[str, Tensor]:
    """Our outputs under the names of `expected.npz`."""
    named = {
        "person_logits": output.person_logits[-1],
        "boxes": output.boxes[-1],
        "action_logits": output.action_logits[-1],
        "tokens": output.tokens,
        "tokens_first8ch": output.tokens[..., :8],
        "roi_features": output.roi_features,
    }
    for stage, (logits, boxes) in enumerate(zip(output.person_logits, output.boxes)):
        named[f"person_logits_head{stage}"], named[f"boxes_head{stage}"] = logits, boxes
    for block, logits in enumerate(output.action_logits):
        named[f"action_logits_layer{block}"] = logits
    return named


def context_numbers(positions: Tensor, slices: int, frame: int) -> Tensor:
    """Convert grid positions to numbers that skip the tokens of the keyframe, in time order."""
    return positions - frame * (positions >= (slices // 2 + 1) * frame)


def named_losses(losses: object, weights: dict[str, float]) -> dict[str, Tensor]:
    """Weighted loss terms under the reference program's names."""
    named: dict[str, Tensor] = {}
    terms = {"ce": ("person", "ce"), "bbox": ("l1", "l1"), "giou": ("giou", "giou"), "bce": ("action", "action")}
    for name, (attribute, weight) in terms.items():
        values = getattr(losses, attribute)
        for stage, value in enumerate(values):
            suffix = "" if stage == len(values) - 1 else f"_{stage}"
            named[f"loss_{name}{suffix}"] = value * weights[weight]
    return named


def check(folder: Path, dtype: torch.dtype) -> dict:
    case = json.loads((folder / "case.json").read_text())
    expected = np.load(folder / "expected.npz")
    model = build_model(load_config(overrides_of(case))).to(dtype)
    released = {name: generated_parameter(name, shape, case["seed"]) for name, shape in case["parameters"].items()}
    model.load_state_dict(rename_released_evad(released))
    model.train()  # only then all decoder blocks give logits; drop path is 0
    batch = PaddingCollate(multiple=32)([generated_clip(case, i) for i in range(len(case["sizes"]))])

    output = model(batch.clips.to(dtype), batch.sizes)
    grid = [case["num_frames"] // 2, *(side // 16 for side in batch.clips.shape[3:])]
    named = named_outputs(output)
    for stage, positions in enumerate(output.kept):
        named[f"kept_{stage}"] = context_numbers(positions[:, grid[1] * grid[2] :], grid[0], grid[1] * grid[2])
    errors, kept_equal, swapped = {}, True, 0
    for name in expected.files:
        theirs = torch.from_numpy(expected[name])
        if name.startswith("kept_"):
            kept_equal &= torch.equal(named[name], theirs.to(torch.int64))
            swapped += sum(len(set(a) - set(b)) for a, b in zip(named[name].tolist(), theirs.tolist()))
        else:
            ours = named[name][..., : theirs.shape[-1]]
            errors[name] = (ours - theirs).abs().max().item() if theirs.numel() else 0.0

    terms = named_losses(SetCriterion().to(dtype)(output, batch.targets, batch.sizes), case["loss_weights"])
    loss = sum(terms.values()) / len(terms)
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {
        "case": folder.name,
        "errors": errors,
        "kept_equal": bool(kept_equal),
        "swapped_tokens": swapped,  # near-ties in float32 may keep another token
        "loss_error": relative(loss.item(), case["loss"]),
        "term_errors": {name: relative(terms[name].item(), value) for name, value in case["weighted_losses"].items()},
        "gradient_errors": gradient_errors(gradients, case),
    }


def gradient_errors(gradients: dict[str, Tensor], case: dict) -> dict[str, float]:
    """Relative error of each recorded gradient norm."""
    errors = {}
    for name, norm in case["grad_norms"].items():
        (ours,) = rename_released_evad({name: torch.empty(case["parameters"][name])})
        gradient = gradients[ours]
        errors[name] = relative(0.0 if gradient is None else gradient.norm().item(), norm)
    return errors


def relative(ours: float, theirs: float) -> float:
    return abs(ours - theirs) / max(abs(theirs), 1e-12)


def largest_error(report: dict) -> float:
    groups = [report["errors"], report["term_errors"], report["gradient_errors"]]
    return max([report["loss_error"], *(value for group in groups for value in group.values())])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", type=Path, metavar="CASE_DIR")
    parser.add_argument("--tolerance", type=float, default=1e-9)
    parser.add_argument("--dtype", choices=["float64", "float32"], default="float64")
    args = parser.parse_args()
    failed = False
    for folder in args.cases:
        report = check(folder, getattr(torch, args.dtype))
        report["max_error"] = largest_error(report)
        report["passed"] = report["kept_equal"] and report["max_error"] <= args.tolerance
        failed |= not report["passed"]
        print(json.dumps(report), flush=True)
    sys.exit(int(failed))


if __name__ == "__main__":
    main()
