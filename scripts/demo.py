"""Show the whole program in minutes: generate data, train, evaluate with and without motion, predict.

    python scripts/demo.py OUT [override ...]

Runs the public commands one after another and prints each of them, so that you can repeat it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from omegaconf import OmegaConf

from evad.data.mini.ava import mini_folder


def run(*arguments: str) -> None:
    print("$ python -m", *arguments, flush=True)
    subprocess.run([sys.executable, "-m", *arguments], check=True)


def main() -> None:
    out, overrides = Path(sys.argv[1]).absolute(), sys.argv[2:]
    started = time.perf_counter()
    run("evad.train", "experiment=mini", f"hydra.run.dir={out}", *overrides)
    trained = time.perf_counter()
    checkpoint = f"ckpt_path={out}/checkpoints/best.ckpt"
    run("evad.eval", checkpoint, f"hydra.run.dir={out}/eval/clip")
    run("evad.eval", checkpoint, "data.sampler.frame_stride=0", f"hydra.run.dir={out}/eval/keyframe_only")
    data = OmegaConf.load(out / "config.resolved.yaml").data
    folder = mini_folder(data.root, data.train_clips, data.val_clips, data.generator_seed)
    run("evad.predict", checkpoint, f"video={folder}/videos/val_00000.mp4")

    clip = json.loads((out / "eval/clip/metrics.json").read_text())
    control = json.loads((out / "eval/keyframe_only/metrics.json").read_text())
    print(f"\nValidation person AP@0.5 {clip['person_AP']:.3f}, action mAP@0.5 {clip['mAP']:.3f}")
    print(f"Without motion (the keyframe repeated): mAP@0.5 {control['mAP']:.3f}")
    print(f"Training {trained - started:.0f} s (generation included), everything {time.perf_counter() - started:.0f} s")
    print(f"Look at {out}/learning_curve.png, {out}/eval/clip/frames/ and {out}/predict/")


if __name__ == "__main__":
    main()
