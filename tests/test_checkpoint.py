"""Weights of other programs: names, shapes, what is refused, and equal outputs."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from evad.config import load_config
from evad.models.evad import EVAD
from evad.models.positions import resize_table, sine_cosine_table
from evad.models.weights.importers import TABLE, read_pretrained, released_evad_name, rename_released_evad
from evad.models.weights.loading import grouped, load_pretrained
from evad.runs.build import build_model
from evad.runs.checkpoints import load_weights, run_of_checkpoint
from evad.training.build import absolute_paths

ROOT = Path(__file__).parents[1]
RELEASED_CASE = Path(__file__).parent / "fixtures/model/tiny_keep0.7_official_order"
VITB_CASE = ROOT.parent / "shared/fixtures/model/vitb_224_keep0.7/case.json"
TINY = [
    "model.net.encoder.dim=24",
    "model.net.encoder.depth=4",
    "model.net.encoder.num_heads=2",
    "model.net.encoder.map_blocks=[1,2,3,4]",
    "model.net.encoder.prune_blocks=[2,3]",
    "model.base_grid=[3,3]",
    "model.num_frames=8",
    "model.patch=8",
]
GRID = (4, 3, 3)


def script(name: str):
    """A file of scripts/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


convert_checkpoint = script("convert_checkpoint")
check_parity = script("check_parity")


@pytest.fixture(scope="module")
def encoder_config():
    return load_config([*TINY, "model.keep_rate=1.0"])


@pytest.fixture
def detector(encoder_config) -> EVAD:
    torch.manual_seed(0)
    return build_model(encoder_config)


def encoder_state(seed: int = 1, norm: str = "norm") -> dict[str, Tensor]:
    """Random encoder weights under VideoMAE's own names."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator) * 0.2

    state = {"patch_embed.proj.weight": random(24, 3, 2, 8, 8), "patch_embed.proj.bias": random(24)}
    for block in range(4):
        parts = {
            **{f"norm{i}.{kind}": random(24) for i in (1, 2) for kind in ("weight", "bias")},
            "attn.q_bias": random(24),
            "attn.v_bias": random(24),
            "attn.qkv.weight": random(72, 24),
            "attn.proj.weight": random(24, 24),
            "attn.proj.bias": random(24),
            "mlp.fc1.weight": random(96, 24),
            "mlp.fc1.bias": random(96),
            "mlp.fc2.weight": random(24, 96),
            "mlp.fc2.bias": random(24),
        }
        state |= {f"blocks.{block}.{name}": value for name, value in parts.items()}
    return state | {f"{norm}.weight": random(24), f"{norm}.bias": random(24)}


def assert_loaded(model: EVAD, state: dict[str, Tensor], without: tuple[str, ...] = ()) -> None:
    ours = model.encoder.state_dict()
    for name, value in state.items():
        if not name.startswith(without):
            torch.testing.assert_close(ours[name], value, rtol=0, atol=0)


# VideoMAE and VideoMAE V2


@pytest.mark.parametrize("wrapper", ["model", "module", "state_dict", None])
@pytest.mark.parametrize("prefix", ["", "encoder.", "backbone.", "module.", "model.encoder."])
def test_finds_an_encoder_below_every_wrapper_and_prefix(detector, tmp_path, wrapper, prefix):
    state = encoder_state()
    named = {prefix + name: value for name, value in state.items()}
    torch.save({wrapper: named} if wrapper else named, tmp_path / "weights.pth")
    report = load_pretrained(detector, tmp_path / "weights.pth")
    assert_loaded(detector, state)
    assert (report.layout, report.encoder_loaded, report.encoder_total) == ("VideoMAE", 56, 56)
    assert not report.unexpected
    assert not report.reshaped
    assert not any(name.startswith("encoder.") for name in report.missing)
    assert report.context_order is None


def test_drops_classifier_and_pretraining_decoder_by_name_and_says_so(detector, tmp_path):
    state = encoder_state(norm="fc_norm")
    extra = {
        name: torch.zeros(3)
        for name in ("head.weight", "mask_token", "encoder_to_decoder.weight", "decoder.blocks.0.norm1.bias")
    }
    torch.save({"module": state | extra | {"cls_token": torch.zeros(1)}, "epoch": 3}, tmp_path / "weights.pth")
    norm = detector.encoder.norm.weight.clone()
    report = load_pretrained(detector, tmp_path / "weights.pth")
    assert report.dropped == ["fc_norm.weight", "fc_norm.bias", *extra]
    assert report.unexpected == ["cls_token"]
    assert [name for name in report.missing if name.startswith("encoder.")] == [
        "encoder.norm.weight",
        "encoder.norm.bias",
    ]
    torch.testing.assert_close(detector.encoder.norm.weight, norm, rtol=0, atol=0)
    summary = report.summary()
    for part in (
        "54 of 56 encoder parameters",
        "fc_norm normalises the mean",
        "cls_token",
        "decoder.blocks.0",
        "epoch",
    ):
        assert part in summary


def test_layer_scale_is_refused(detector, tmp_path):
    state = encoder_state() | {f"blocks.{i}.gamma_{j}": torch.ones(24) for i in range(4) for j in (1, 2)}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"layer scale.*\(8: encoder.blocks.0.gamma_1"):
        load_pretrained(detector, tmp_path / "weights.pth")


def test_deeper_encoder_is_refused_although_all_of_ours_match(detector, tmp_path):
    torch.save(encoder_state() | {"blocks.4.norm1.weight": torch.ones(24)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"its blocks have parameters.*blocks\.4\.norm1"):
        load_pretrained(detector, tmp_path / "weights.pth")


def test_key_bias_is_dropped_because_softmax_ignores_it(detector, tmp_path):
    state = encoder_state()
    packed = {name: value for name, value in state.items() if not name.endswith(("q_bias", "v_bias"))}
    for block in range(4):
        query, value = (state[f"blocks.{block}.attn.{part}_bias"] for part in "qv")
        packed[f"blocks.{block}.attn.qkv.bias"] = torch.cat([query, torch.full((24,), 5.0), value])
    torch.save(packed, tmp_path / "weights.pth")
    report = load_pretrained(detector, tmp_path / "weights.pth")
    assert_loaded(detector, state)
    assert report.dropped[0] == "encoder.blocks.0.attn.qkv.bias (keys)"


def test_too_few_matches_is_an_error_with_count_and_names(detector, tmp_path):
    state = {name: value for name, value in encoder_state().items() if not name.startswith("blocks.3.mlp")}
    torch.save(state, tmp_path / "weights.pth")
    before = detector.encoder.norm.weight.clone()
    with pytest.raises(ValueError, match=r"only 52 of 56 .* 4 are missing \(encoder\.blocks\.3\.mlp\.fc1\.weight"):
        load_pretrained(detector, tmp_path / "weights.pth")
    torch.testing.assert_close(detector.encoder.norm.weight, before)


def test_another_width_is_an_error_with_both_shapes(encoder_config, tmp_path):
    torch.save(encoder_state(), tmp_path / "weights.pth")
    wider = build_model(load_config([*TINY, "model.net.encoder.dim=32"]))
    with pytest.raises(ValueError, match=r"only 0 of 56 .* \(24, 3, 2, 8, 8\) instead of \(32, 3, 2, 8, 8\)"):
        load_pretrained(wider, tmp_path / "weights.pth")


@pytest.mark.parametrize(("shape", "words"), [((24, 3, 1, 8, 8), "1 x 8 x 8"), ((24, 3, 8, 8), "8 x 8")])
def test_another_patch_embedding_is_an_error(detector, tmp_path, shape, words):
    torch.save(encoder_state() | {"patch_embed.proj.weight": torch.zeros(shape)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=f"patch embedding of {words} .* instead of 2 x 8 x 8"):
        load_pretrained(detector, tmp_path / "weights.pth")


def test_names_of_another_program_are_an_error(tmp_path):
    torch.save({"stem.conv.weight": torch.zeros(1)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"stem\.conv\.weight.*fit neither VideoMAE"):
        read_pretrained(tmp_path / "weights.pth")


# Position tables


def test_fixed_position_table_is_dropped(detector, tmp_path):
    torch.save(encoder_state() | {"pos_embed": sine_cosine_table(36, 24)[None].half()}, tmp_path / "weights.pth")
    report = load_pretrained(detector, tmp_path / "weights.pth")
    assert any("fixed sine-cosine" in note for note in report.notes)
    assert TABLE not in detector.state_dict()


@pytest.mark.parametrize("side", [3, 5])
def test_other_position_table_is_used_and_survives_saving(detector, encoder_config, tmp_path, side):
    table = torch.randn(1, 4 * side * side, 24, generator=torch.Generator().manual_seed(3))
    torch.save(encoder_state() | {"encoder.pos_embed": table}, tmp_path / "weights.pth")
    report = load_pretrained(detector, tmp_path / "weights.pth")
    expected = table[0] if side == 3 else resize_table(table[0], (4, side, side), (3, 3))
    torch.testing.assert_close(detector.encoder.positions(GRID), expected, rtol=0, atol=0)
    assert any("saved with the model" in note for note in report.notes)

    torch.save({"state_dict": {f"model.{k}": v for k, v in detector.state_dict().items()}}, tmp_path / "last.ckpt")
    again, started = build_model(encoder_config), build_model(encoder_config)
    load_weights(again, tmp_path / "last.ckpt")
    report = load_pretrained(started, tmp_path / "last.ckpt")
    assert not report.missing
    for model in (again, started):
        torch.testing.assert_close(model.encoder.positions(GRID), expected, rtol=0, atol=0)
        assert TABLE in model.state_dict()


def test_position_table_of_another_clip_length_is_an_error(detector, tmp_path):
    torch.save(encoder_state() | {"pos_embed": torch.zeros(1, 8 * 9, 24)}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"table of 72 cells is not 4 square slices"):
        load_pretrained(detector, tmp_path / "weights.pth")


def test_rows_stay_rows_when_a_table_is_resized():
    table = torch.arange(5.0).repeat_interleave(5).repeat(4)[:, None]  # the row's number
    resized = resize_table(table, (4, 5, 5), (3, 2)).view(4, 3, 2)
    torch.testing.assert_close(resized, resized[:1, :, :1].expand(4, 3, 2))
    assert resized[0, :, 0].diff().min() > 1


def test_slices_are_resized_by_themselves():
    table = torch.arange(4.0).repeat_interleave(25)[:, None].expand(-1, 2)
    resized = resize_table(table, (4, 5, 5), (3, 2))
    torch.testing.assert_close(resized, torch.arange(4.0).repeat_interleave(6)[:, None].expand(-1, 2))


# Hugging Face


def hugging_face_model(mean_pooling: bool):
    transformers = pytest.importorskip("transformers", reason="the dev extra is not installed")
    config = transformers.VideoMAEConfig(
        image_size=24,
        patch_size=8,
        num_frames=8,
        hidden_size=24,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=96,
        layer_norm_eps=1e-6,
        use_mean_pooling=mean_pooling,
    )
    generator = torch.Generator().manual_seed(5)
    model = transformers.VideoMAEModel(config).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2, generator=generator)
    return model


def videomae_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A Hugging Face state dict as the original program writes it."""
    renamed = {
        "patch_embed.proj.weight": state["embeddings.patch_embeddings.projection.weight"],
        "patch_embed.proj.bias": state["embeddings.patch_embeddings.projection.bias"],
        "norm.weight": state["layernorm.weight"],
        "norm.bias": state["layernorm.bias"],
    }
    for i in range(4):
        theirs, ours = f"encoder.layer.{i}.", f"blocks.{i}."
        attention = f"{theirs}attention.attention."
        renamed[f"{ours}attn.qkv.weight"] = torch.cat(
            [state[f"{attention}{n}.weight"] for n in ("query", "key", "value")]
        )
        renamed[f"{ours}attn.q_bias"] = state[f"{attention}query.bias"]
        renamed[f"{ours}attn.v_bias"] = state[f"{attention}value.bias"]
        pairs = [
            ("attn.proj", "attention.output.dense"),
            ("norm1", "layernorm_before"),
            ("norm2", "layernorm_after"),
            ("mlp.fc1", "intermediate.dense"),
            ("mlp.fc2", "output.dense"),
        ]
        renamed |= {f"{ours}{a}.{kind}": state[f"{theirs}{b}.{kind}"] for a, b in pairs for kind in ("weight", "bias")}
    return renamed


def save_source(model, kind: str, folder: Path) -> Path:
    if kind == "folder":
        model.save_pretrained(folder)
        return folder
    if kind == "shards":
        model.save_pretrained(folder, max_shard_size="40KB")
        assert (folder / "model.safetensors.index.json").is_file()
        return folder
    if kind == "bin":  # older releases: q_bias and v_bias
        state = {
            "videomae." + name.replace("query.bias", "q_bias").replace("value.bias", "v_bias"): value
            for name, value in model.state_dict().items()
        }
        torch.save(state, folder / "pytorch_model.bin")
        return folder
    torch.save({"model": videomae_names(model.state_dict())}, folder / "weights.pth")
    return folder / "weights.pth"


@pytest.mark.parametrize("kind", ["folder", "shards", "bin", "videomae"])
def test_encoder_tokens_equal_those_of_transformers(detector, tmp_path, kind):
    theirs = hugging_face_model(mean_pooling=False)
    report = load_pretrained(detector, save_source(theirs, kind, tmp_path))
    assert report.encoder_loaded == report.encoder_total
    clips = torch.randn(2, 3, 8, 24, 24, generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        expected = theirs(clips.transpose(1, 2)).last_hidden_state
        tokens = detector.eval().encoder(clips).tokens  # keyframe first; position says where each belongs
    ours = torch.empty_like(tokens.x).scatter(1, tokens.position[..., None].expand_as(tokens.x), tokens.x)
    torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.1


def test_pooled_hugging_face_classifier_leaves_the_final_norm(detector, tmp_path):
    state = {f"videomae.{name}": value for name, value in hugging_face_model(mean_pooling=True).state_dict().items()}
    head = {"fc_norm.weight": torch.ones(24), "classifier.weight": torch.ones(2, 24)}
    save_file(state | head, tmp_path / "model.safetensors")
    report = load_pretrained(detector, tmp_path / "model.safetensors")
    assert (report.encoder_loaded, report.encoder_total) == (54, 56)
    assert set(report.dropped) == set(head)
    assert any("fc_norm" in note for note in report.notes)


def test_another_number_of_heads_is_an_error(detector, tmp_path):
    save_source(hugging_face_model(mean_pooling=False), "folder", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 3}))
    with pytest.raises(ValueError, match="3 attention heads, the model has 2"):
        load_pretrained(detector, tmp_path)


# Released detectors and our own


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A released checkpoint file of generated weights, and its case."""
    case = json.loads((RELEASED_CASE / "case.json").read_text())
    state = {
        name: check_parity.generated_parameter(name, shape, case["seed"]) for name, shape in case["parameters"].items()
    }
    path = tmp_path_factory.mktemp("released") / "released.pyth"
    torch.save({"epoch": 11, "model_state": state, "cfg": "MODEL: {}"}, path)
    overrides = [o for o in check_parity.overrides_of(case) if not o.startswith("model.context_order")]
    return path, case, overrides


def test_released_detector_loads_completely_and_gives_the_released_outputs(released):
    path, case, overrides = released
    model = build_model(load_config(overrides)).double()
    assert model.encoder.context_order == "position"
    report = load_pretrained(model, path)
    assert (report.missing, report.unexpected, report.reshaped) == ([], [], [])
    assert report.dropped == ["criterion.empty_weight"]
    assert report.context_order == model.encoder.context_order == "score"
    assert "context_order=score" in report.summary()

    expected = np.load(RELEASED_CASE / "expected.npz")
    clip = check_parity.generated_clip(case, 0)
    with torch.no_grad():
        output = model.eval()(clip.frames[None], torch.tensor(case["sizes"]))
    torch.testing.assert_close(output.tokens, torch.from_numpy(expected["tokens"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(output.action_logits[-1], torch.from_numpy(expected["action_logits"]), rtol=0, atol=1e-9)


def test_converted_released_detector_loads_strictly_with_the_config_beside_it(released, tmp_path):
    path, _, overrides = released
    target = tmp_path / "converted" / "evad.safetensors"
    report, _ = convert_checkpoint.convert(path, target, overrides)
    assert report.missing == []
    assert run_of_checkpoint(target) == target.parent
    cfg = OmegaConf.load(target.parent / "config.yaml")
    assert cfg.model.context_order == "score"

    model = build_model(cfg)
    load_weights(model, target)
    fresh = build_model(load_config(overrides))
    again = load_pretrained(fresh, target)
    assert (again.missing, again.unexpected, again.reshaped, again.dropped) == ([], [], [], [])
    assert again.context_order == fresh.encoder.context_order == "score"
    for name, value in model.state_dict().items():
        torch.testing.assert_close(fresh.state_dict()[name], value, rtol=0, atol=0)
    with pytest.raises(FileExistsError, match="choose a new folder"):
        convert_checkpoint.convert(path, target, overrides)


def test_action_heads_of_other_classes_start_anew_and_are_reported(released):
    path, _, overrides = released
    model = build_model(load_config([*overrides, "model.num_classes=21"]))
    before = model.state_dict()["classification.decoder.heads.0.3.weight"].clone()
    report = load_pretrained(model, path)
    assert report.reshaped == [
        line
        for i in range(3)
        for line in (
            f"classification.decoder.heads.{i}.3.weight (80, 40) instead of (21, 40)",
            f"classification.decoder.heads.{i}.3.bias (80,) instead of (21,)",
        )
    ]
    assert "6 of another shape, keep their initial values" in report.summary()
    torch.testing.assert_close(model.state_dict()["classification.decoder.heads.0.3.weight"], before)


def test_unknown_released_name_is_reported(released, tmp_path):
    path, _, _ = released
    state = torch.load(path)["model_state"] | {"det_head.extra": torch.zeros(1)}
    torch.save({"model_state": state}, tmp_path / "released.pyth")
    assert read_pretrained(tmp_path / "released.pyth").unexpected == ["det_head.extra"]
    with pytest.raises(KeyError, match=r"det_head\.extra"):
        released_evad_name("det_head.extra")


def test_released_names_cover_the_whole_vitb_detector():
    if not VITB_CASE.is_file():
        pytest.skip(f"{VITB_CASE} is not here")
    parameters = json.loads(VITB_CASE.read_text())["parameters"]
    with torch.device("meta"):
        model = build_model(load_config(["experiment=ava_vitb"]))
        renamed = rename_released_evad({name: torch.empty(shape) for name, shape in parameters.items()})
    assert {n: v.shape for n, v in renamed.items()} == {n: v.shape for n, v in model.state_dict().items()}


def test_run_checkpoint_keeps_the_models_context_order(detector, encoder_config, tmp_path):
    detector.encoder.set_context_order("score")
    torch.save({"state_dict": {f"model.{k}": v for k, v in detector.state_dict().items()}}, tmp_path / "last.ckpt")
    model = build_model(encoder_config)
    report = load_pretrained(model, tmp_path / "last.ckpt")
    assert (report.layout, report.missing, report.context_order) == ("EVAD run", [], None)
    assert model.encoder.context_order == "position"


def test_encoder_alone_of_a_detector(released):
    path, _, overrides = released
    model = build_model(load_config(overrides))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    report = load_pretrained(model, path, part="encoder")
    theirs = read_pretrained(path).state
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("encoder.") for name in changed)
    for name in report.loaded:
        torch.testing.assert_close(model.state_dict()[name], theirs[name].float(), rtol=0, atol=0)
    assert report.encoder_loaded == len(report.loaded) == report.encoder_total
    assert {name for name in theirs if not name.startswith("encoder.")} <= set(report.dropped)
    # The order is of the decoder that reads the tokens: a new decoder learns any.
    assert report.context_order is None
    assert not any("order" in note for note in report.notes)
    assert model.encoder.context_order == "position"


def test_unknown_part_is_an_error(detector, tmp_path):
    torch.save(encoder_state(), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="init_part=decoder: choose one of model, encoder"):
        load_pretrained(detector, tmp_path / "weights.pth", part="decoder")


def test_released_detector_is_refused_where_tokens_have_no_score(released):
    """Its decoder reads tokens in the order of their scores."""
    path, _, overrides = released
    model = build_model(load_config([*overrides, "model/pruning=tome_merging"]))
    with pytest.raises(ValueError, match="context_order 'score': the tokens of MergingPruning have no score"):
        load_pretrained(model, path)


def test_run_checkpoint_converts_with_its_own_config(detector, encoder_config, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    saved = encoder_config.copy()
    absolute_paths(saved)
    OmegaConf.save(saved, run / "config.yaml")
    (run / "classes.json").write_text("{}")
    state = {f"model.{name}": value for name, value in detector.state_dict().items()}
    torch.save({"state_dict": state | {"criterion.weight": torch.ones(2)}}, run / "checkpoints" / "last.ckpt")
    target = tmp_path / "converted" / "evad.safetensors"
    report, _ = convert_checkpoint.convert(run / "checkpoints" / "last.ckpt", target, ["model.keep_rate=0.8"])
    assert report.dropped == ["criterion.weight"]
    cfg = OmegaConf.load(target.parent / "config.yaml")
    assert (cfg.model.keep_rate, cfg.model.net.encoder.dim) == (0.8, 24)
    assert (target.parent / "classes.json").is_file()
    load_weights(build_model(cfg), target)


# The command


def test_command_writes_an_encoder_and_prints_the_report(tmp_path, capsys, monkeypatch):
    state = encoder_state(norm="fc_norm") | {"pos_embed": torch.randn(1, 36, 24)}
    torch.save({"model": state}, tmp_path / "weights.pth")
    target = tmp_path / "converted" / "encoder.safetensors"
    monkeypatch.setattr(sys, "argv", ["convert", str(tmp_path / "weights.pth"), str(target), "experiment=mini", *TINY])
    convert_checkpoint.main()
    printed = capsys.readouterr().out
    assert "54 of 56 encoder parameters" in printed
    assert f"wrote {target}" in printed
    assert "keep_rate 0.7 " in printed
    written = load_file(target)
    assert len(written) == 55
    torch.testing.assert_close(written[TABLE], state["pos_embed"][0])
    model = build_model(OmegaConf.load(target.parent / "config.yaml"))
    report = load_pretrained(model, target)
    assert (report.encoder_loaded, report.unexpected, report.context_order) == (54, [], None)
    assert report.layout == "VideoMAE"


def test_command_says_what_is_wrong_in_a_line(tmp_path, capsys, monkeypatch):
    torch.save(encoder_state(), tmp_path / "weights.pth")
    arguments = ["convert", str(tmp_path / "weights.pth"), str(tmp_path / "out" / "encoder.safetensors")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit):
        convert_checkpoint.main()
    assert (
        "the encoder has width 24 and depth 4, but conf/model has only mini (96, 6), vitb (768, 12)"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("width", "depth", "choice"), [(768, 12, "vitb"), (1024, 24, "vitl"), (96, 6, "mini")])
def test_model_is_chosen_by_width_and_depth(tmp_path, width, depth, choice):
    state = {f"blocks.{i}.attn.qkv.weight": torch.zeros(1) for i in range(depth)}
    torch.save(state | {"patch_embed.proj.weight": torch.zeros(width, 1)}, tmp_path / "weights.pth")
    assert convert_checkpoint.model_choice(read_pretrained(tmp_path / "weights.pth")) == choice


def test_long_lists_are_counted_by_their_first_part():
    names = [f"decoder.{i}" for i in range(9)]
    assert grouped(["mask_token", *names, "head.bias"]) == "mask_token, decoder.* (9), head.bias"
