"""Cost of a detector: the paper's count, and what is executed."""

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evad.config import load_config
from evad.metrics.cost import executed_macs, paper_macs, token_counts
from evad.runs.build import build_model

# 10^9 multiply-accumulates of the released code: model, keep rate -> size -> count.
RELEASED = {
    ("vitb", 1.0): {224: 224.08, 256: 312.09, 288: 424.66},
    ("vitb", 0.9): {224: 186.58, 288: 346.48},
    ("vitb", 0.8): {224: 157.32, 288: 287.61},
    ("vitb", 0.7): {224: 134.51, 256: 182.63, 288: 243.04},
    ("vitb", 0.6): {224: 116.62, 288: 209.17},
    ("vitl", 1.0): {224: 708.71, 256: 981.70, 288: 1325.31},
    ("vitl", 0.7): {224: 410.44, 256: 557.06, 288: 737.94},
}


def on_meta(*overrides):
    with torch.device("meta"):
        return build_model(load_config(["experiment=ava_vitb", *overrides]))


@pytest.mark.parametrize(("model", "keep_rate"), RELEASED)
def test_count_of_the_released_detector(model, keep_rate):
    detector = on_meta(f"model={model}", f"model.keep_rate={keep_rate}")
    for size, expected in RELEASED[model, keep_rate].items():
        counted = paper_macs(detector, 16, size, size)
        assert sum(counted.values()) / 1e9 == pytest.approx(expected, rel=1e-4)


def test_parameters_of_vit_b():
    model = on_meta()
    parts = {
        "patch_embed": model.encoder.patch_embed,
        "blocks": model.encoder.blocks,
        "heads": model.localization.heads,
        "decoder": model.classification.decoder,
        "project": model.classification.project,
        "pyramid": model.pyramid,
    }
    counts = {name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()}
    assert sum(p.numel() for p in model.parameters()) == 185_359_636
    expected = {
        "patch_embed": 1.180,
        "blocks": 85.045,
        "heads": 79.292,
        "decoder": 16.371,
        "project": 0.295,
        "pyramid": 3.148,
    }
    assert {name: round(count / 1e6, 3) for name, count in counts.items()} == expected


def test_token_counts_by_hand(tiny_model):
    assert token_counts(tiny_model(), 8, 32, 48) == [96, 77, 62, 50]


def counted_by_torch(model, batch, training):
    model.train(training)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(batch.clips[:1], batch.sizes[:1])
    return {name: sum(counts.values()) / 2 for name, counts in counter.get_flop_counts().items()}


@pytest.mark.parametrize("training", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize("keep_rate", [1, 0.8])
def test_executed_count_is_what_torch_counts(tiny_model, tiny_batch, keep_rate, training):
    model, batch = tiny_model(f"model.keep_rate={keep_rate}"), tiny_batch()
    counted = counted_by_torch(model, batch, training)
    executed = executed_macs(model, 8, 32, 48, training=training)
    parts = {
        "patch_embed": counted["EVAD.encoder.patch_embed"],
        "encoder": counted["EVAD.encoder"] - counted["EVAD.encoder.patch_embed"],
        "pyramid": counted["EVAD.pyramid"],
        "localization": counted["EVAD.localization"],
        # Without the branch's own products: RoIAlign, which neither count includes.
        "classification": counted["EVAD.classification.project"] + counted["EVAD.classification.decoder"],
    }
    assert executed == parts
