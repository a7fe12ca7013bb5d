"""Import of weights from other programs: their parameter names -> our names."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import torch
from torch import Tensor

from evad.models.encoder import ContextOrder
from evad.models.weights.reading import WeightFile, read_weights

# Our name of a position table that differs from the fixed sine-cosine table.
TABLE = "encoder.positions.table"
# Metadata keys of our safetensors files.
LAYOUT_KEY, ORDER_KEY = "evad_layout", "context_order"

# Prefixes of a whole model: DistributedDataParallel, Lightning modules and Hugging Face wrappers, torch.compile.
_OUTER = r"(?:module\.|model\.|_orig_mod\.)+"
# Prefixes of a backbone.
_INNER = r"(?:backbone\.|videomae\.|encoder\.)+"
# Parts of VideoMAE models that detectors do not have: classifier and pretraining decoder.
_DROPPED = r"(decoder\.|fc_norm\.|head\.|classifier\.|encoder_to_decoder\.|mask_token$)"
OUR_RUN = "EVAD run"  # layout name of our own weights
_OUR_PARTS = r"(encoder|pyramid|localization|classification)\."
# Hugging Face VideoMAE, below `videomae.encoder.`: first match wins.
_HUGGING_FACE = [
    (r"embeddings\.patch_embeddings\.projection\.", "encoder.patch_embed.proj."),
    (r"embeddings\.position_embeddings$", TABLE),
    (r"layernorm\.", "encoder.norm."),
    (r"layer\.(\d+)\.attention\.attention\.(?:q_bias|query\.bias)$", r"encoder.blocks.\1.attn.q_bias"),
    (r"layer\.(\d+)\.attention\.attention\.(?:v_bias|value\.bias)$", r"encoder.blocks.\1.attn.v_bias"),
    (r"layer\.(\d+)\.attention\.attention\.(query|key|value)\.", r"encoder.blocks.\1.attn.\2."),
    (r"layer\.(\d+)\.attention\.output\.dense\.", r"encoder.blocks.\1.attn.proj."),
    (r"layer\.(\d+)\.layernorm_before\.", r"encoder.blocks.\1.norm1."),
    (r"layer\.(\d+)\.layernorm_after\.", r"encoder.blocks.\1.norm2."),
    (r"layer\.(\d+)\.intermediate\.dense\.", r"encoder.blocks.\1.mlp.fc1."),
    (r"layer\.(\d+)\.output\.dense\.", r"encoder.blocks.\1.mlp.fc2."),
]
_VIDEOMAE = [
    (r"pos_embed$", TABLE),
    (r"(patch_embed|blocks|norm)\.", r"encoder.\1."),
]

# Released EVAD checkpoints: first match wins; patterns match the start of the name.
_RELEASED_EVAD = [
    (r"(patch_embed|blocks|norm)\.", r"encoder.\1."),
    (r"det_head\.mask_token$", "classification.mask_token"),
    (r"det_head\.encoder_to_decoder\.", "classification.project."),
    (r"det_head\.decoder\.blocks\.(\d+)\.act_module\.", r"classification.decoder.heads.\1."),
    (r"det_head\.decoder\.blocks\.(\d+)\.action_logits\.", r"classification.decoder.heads.\1.3."),
    (r"det_head\.decoder\.blocks\.", "classification.decoder.blocks."),
    (r"det_head\.s0_headseries\.(\d+)\.inst_interact\.dynamic_layer\.", r"localization.heads.\1.interaction.generate."),
    (r"det_head\.s0_headseries\.(\d+)\.inst_interact\.out_layer\.", r"localization.heads.\1.interaction.out."),
    (r"det_head\.s0_headseries\.(\d+)\.inst_interact\.", r"localization.heads.\1.interaction."),
    (r"det_head\.s0_headseries\.(\d+)\.linear1\.", r"localization.heads.\1.ffn.0."),
    (r"det_head\.s0_headseries\.(\d+)\.linear2\.", r"localization.heads.\1.ffn.2."),
    (r"det_head\.s0_headseries\.(\d+)\.cls_module\.", r"localization.heads.\1.cls_tower."),
    (r"det_head\.s0_headseries\.(\d+)\.reg_module\.", r"localization.heads.\1.reg_tower."),
    (r"det_head\.s0_headseries\.(\d+)\.class_logits\.", r"localization.heads.\1.person_logits."),
    (r"det_head\.s0_headseries\.(\d+)\.bboxes_delta\.", r"localization.heads.\1.box_deltas."),
    (r"det_head\.s0_headseries\.", "localization.heads."),
    (r"init_proposal_(boxes|features)\.weight$", r"localization.proposal_\1"),
]
# Constants of the released program, not weights.
_RELEASED_CONSTANTS = ("criterion.empty_weight",)


def released_evad_name(name: str) -> str | None:
    """Our name of a parameter in a released EVAD checkpoint; None for a constant that our models do not store.

    Raises:
        KeyError: if released EVAD checkpoints have no parameter of this name.
    """
    if name in _RELEASED_CONSTANTS:
        return None
    pyramid = re.fullmatch(r"fpn_(lateral|output)([2-5])\.(weight|bias)", name)
    if pyramid:  # level l has stride 2^l; our levels count from the finest
        return f"pyramid.{pyramid[1]}.{int(pyramid[2]) - 2}.{pyramid[3]}"
    ours = _first_match(_RELEASED_EVAD, name)
    if ours is None:
        raise KeyError(f"{name!r} is not a parameter of a released EVAD checkpoint")
    return ours


def rename_released_evad(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A released EVAD state dict with our names and shapes."""
    renamed = {}
    for name, value in state.items():
        ours = released_evad_name(name)
        if ours is not None:
            renamed[ours] = value.flatten() if ours == "classification.mask_token" else value
    return renamed


@dataclass
class PretrainedWeights:
    """Weights of any supported program under our names.

    Attributes:
        path: File or folder of the weights.
        layout: Program that the weights come from, such as `VideoMAE`.
        state: Our name -> tensor. `TABLE` is a position table, (T' * h * w, C), fixed sine-cosine or learned.
        num_heads: Attention heads the encoder was trained with; None if not recorded.
        context_order: `context_order` of a trained detector; None if not recorded.
        dropped: Names of parts that detectors do not have, left out on purpose.
        unexpected: Names that match no rule.
        notes: Remarks for the log.
    """

    path: Path
    layout: str
    state: dict[str, Tensor] = field(default_factory=dict)
    num_heads: int | None = None
    context_order: ContextOrder | None = None
    dropped: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, ours: str | None, value: Tensor) -> None:
        """Add the tensor `name` as our parameter `ours`; None if the name matches no rule.

        Raises:
            ValueError: if another tensor of the file is also this parameter.
        """
        if ours is None:
            self.unexpected.append(name)
        elif ours in self.state:
            raise ValueError(f"{self.path} contains {ours} twice, once as {name}: save one model per file")
        else:
            self.state[ours] = value

    def encoder_only(self) -> PretrainedWeights:
        """The encoder's weights alone, without `context_order`, which matters to a whole detector only."""
        state = {name: value for name, value in self.state.items() if name.startswith("encoder.")}
        others = [name for name in self.state if name not in state]
        return replace(self, state=state, dropped=self.dropped + others, context_order=None)


def read_pretrained(path: str | Path) -> PretrainedWeights:
    """Read weights of VideoMAE, VideoMAE V2, Hugging Face VideoMAE, a released EVAD detector or one of ours.

    Args:
        path: See `evad.models.weights.reading.read_weights`.

    Raises:
        ValueError: if the parameter names fit none of these programs.
    """
    file = read_weights(path)
    tensors = {re.sub("^" + _OUTER, "", name): value for name, value in file.tensors.items()}
    if len(tensors) < len(file.tensors):
        raise ValueError(
            f"{path} holds several models that differ only in the prefix of their names: save one per file"
        )
    weights = _reader_of(tensors, file)(tensors, file)
    if file.ignored:
        weights.notes.append(f"entries of the file that are not used: {', '.join(file.ignored)}")
    return weights


def _reader_of(tensors: dict[str, Tensor], file: WeightFile) -> Callable[[dict, WeightFile], PretrainedWeights]:
    marks: list[tuple[str, Callable[[dict, WeightFile], PretrainedWeights]]] = [
        (r"det_head\.", _from_released_evad),
        (r"(localization|classification)\.", _from_ours),
        (r".*layer\.\d+\.attention\.attention\.query\.weight", _from_hugging_face),
        (r".*blocks\.\d+\.attn\.qkv\.weight", _from_videomae),
    ]
    if file.metadata.get(LAYOUT_KEY):
        return _from_ours
    for pattern, reader in marks:
        if any(re.match(pattern, name) for name in tensors):
            return reader
    raise ValueError(
        f"{file.path}: the names ({', '.join(list(tensors)[:3])}, ...) fit neither VideoMAE, its Hugging Face "
        "version, a released EVAD detector nor one of ours"
    )


def _from_released_evad(tensors: dict[str, Tensor], file: WeightFile) -> PretrainedWeights:
    weights = PretrainedWeights(file.path, "released EVAD", context_order="score")
    weights.dropped = [name for name in tensors if name in _RELEASED_CONSTANTS]
    for name, value in tensors.items():
        try:
            for ours, renamed in rename_released_evad({name: value}).items():
                weights.add(name, ours, renamed)
        except KeyError:
            weights.unexpected.append(name)
    return weights


def _from_ours(tensors: dict[str, Tensor], file: WeightFile) -> PretrainedWeights:
    weights = PretrainedWeights(file.path, file.metadata.get(LAYOUT_KEY, OUR_RUN))
    order = file.metadata.get(ORDER_KEY)
    weights.context_order = next((known for known in get_args(ContextOrder) if known == order), None)
    for name, value in tensors.items():
        if re.match(_OUR_PARTS, name):
            weights.add(name, name, value)
        else:  # the criterion's constants
            weights.dropped.append(name)
    return weights


def _from_videomae(tensors: dict[str, Tensor], file: WeightFile) -> PretrainedWeights:
    weights = PretrainedWeights(file.path, "VideoMAE")
    _add_backbone(weights, tensors, _VIDEOMAE)
    return weights


def _from_hugging_face(tensors: dict[str, Tensor], file: WeightFile) -> PretrainedWeights:
    weights = PretrainedWeights(file.path, "Hugging Face VideoMAE", num_heads=file.config.get("num_attention_heads"))
    _add_backbone(weights, tensors, _HUGGING_FACE)
    return weights


def _add_backbone(weights: PretrainedWeights, tensors: dict[str, Tensor], rules: list[tuple[str, str]]) -> None:
    """Add a backbone's tensors under our names, with attention and positions in our layout."""
    for name, value in tensors.items():
        bare = re.sub("^" + _INNER, "", name)
        if re.match(_DROPPED, bare):
            weights.dropped.append(name)
        else:
            weights.add(name, _first_match(rules, bare), value)
    _pack_attention(weights)
    if TABLE in weights.state:  # (1, N, C) -> (N, C)
        weights.state[TABLE] = weights.state[TABLE].flatten(0, -2)
    pooled = [name for name in weights.dropped if "fc_norm." in name]
    if pooled and "encoder.norm.weight" not in weights.state:
        weights.notes.append(
            "fc_norm normalises the mean of all tokens instead of each token: it is dropped and the encoder's final "
            "norm keeps its initial values, as in the released EVAD"
        )


def _pack_attention(weights: PretrainedWeights) -> None:
    """Pack separate query, key and value matrices into one; split a packed bias into q_bias and v_bias.

    A bias on keys is dropped. It adds the same number to all scores of a query, which softmax ignores.
    """
    state = weights.state
    blocks = sorted({match[1] for name in state if (match := re.match(r"(encoder\.blocks\.\d+\.attn\.)", name))})
    key_biases = []
    for block in blocks:
        parts = [f"{block}{part}.weight" for part in ("query", "key", "value")]
        if all(part in state for part in parts):
            state[f"{block}qkv.weight"] = torch.cat([state.pop(part) for part in parts])
        if f"{block}qkv.bias" in state:
            query, _, value = state.pop(f"{block}qkv.bias").chunk(3)
            state[f"{block}q_bias"], state[f"{block}v_bias"] = query, value
            key_biases.append(f"{block}qkv.bias (keys)")
        for name in (f"{block}key.bias", f"{block}k_bias"):
            if state.pop(name, None) is not None:
                key_biases.append(name)
    weights.dropped += key_biases
    if key_biases:
        weights.notes.append("biases on keys are dropped: softmax ignores them")


def _first_match(rules: list[tuple[str, str]], name: str) -> str | None:
    """`name` rewritten by the first rule that matches its start; None if no rule matches."""
    for pattern, replacement in rules:
        if re.match(pattern, name):
            return re.sub("^" + pattern, replacement, name)
    return None
