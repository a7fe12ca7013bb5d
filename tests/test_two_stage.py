"""Boxes of an external detector in place of the localization branch: model, loss, detections."""

from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import binary_cross_entropy_with_logits
from torch.utils.flop_counter import FlopCounterMode

from evad.config import load_config
from evad.metrics.cost import EXTERNAL_ACTORS, executed_macs, paper_macs
from evad.models.criterion import ActionCriterion, OverlapMatcher, SetCriterion
from evad.models.heads.external import ExternalBoxes
from evad.models.postprocess import PostProcess
from evad.runs.build import build_criterion, build_model
from evad.structures import EVADOutput, Proposals, Target
from evad.training.module import EVADModule

EXTERNAL = "model/localization=external"
HEADS = ["decoder", "linear", "woo"]
# Keys of the tiny localization branch, which an external detector does not have.
OWN = ("pyramid.", "localization.")


@pytest.fixture
def tiny_external(tiny_model):
    """`tiny_external(*overrides)`: the tiny detector without a localization branch, same weights elsewhere."""
    from conftest import TINY, randomise

    def build(*overrides, dtype=torch.float64):
        keys = [key for key in TINY if not key.removeprefix("model.net.").startswith((*OWN, "model.num_queries"))]
        model = build_model(load_config([*keys, EXTERNAL, *overrides]))
        randomise(model, 0)
        return model.to(dtype)

    return build


def proposals(*counts, dtype=torch.float64):
    """Boxes and scores, so many per clip, each within 27 x 41 pixels."""
    generator = torch.Generator().manual_seed(5)
    made = []
    for count in counts:
        corner, extent, scores = torch.rand(3, count, 2, generator=generator, dtype=dtype)
        boxes = torch.cat([12 * corner, 12 * corner + 3 + 10 * extent], dim=1)
        made.append(Proposals(boxes, 0.5 + 0.5 * scores[:, 0]))
    return made


def annotated(batch):
    return [Proposals(target.boxes, torch.ones_like(target.boxes[:, 0])) for target in batch.targets]


def test_only_the_localization_parts_are_gone(tiny_model, tiny_external):
    before, after = (dict(model.named_parameters()) for model in (tiny_model(), tiny_external()))
    assert {name for name in before if name not in after} == {name for name in before if name.startswith(OWN)}
    assert {name: p.shape for name, p in after.items()} == {
        name: p.shape for name, p in before.items() if not name.startswith(OWN)
    }


def test_boxes_and_scores_pass_through_unchanged_and_padding_is_masked():
    given = proposals(3, 1)
    located = ExternalBoxes()([], torch.tensor([[32, 48]] * 2), given)
    assert located.person_logits.shape == (1, 2, 3, 2)
    scores = located.person_logits.softmax(-1)[0, ..., 0]
    torch.testing.assert_close(scores[0], given[0].scores, rtol=0, atol=1e-15)
    assert scores[1].tolist() == pytest.approx([given[1].scores.item(), 0, 0])
    assert torch.equal(located.boxes[0, 0], given[0].boxes)
    assert torch.equal(located.boxes[0, 1, :1], given[1].boxes)
    assert located.valid.tolist() == [[True, True, True], [True, False, False]]


def test_clips_without_any_box_have_one_query_that_is_not_valid():
    located = ExternalBoxes()([], torch.tensor([[32, 48]] * 2), proposals(0, 0))
    assert located.boxes.shape == (1, 2, 1, 4)
    assert located.valid.tolist() == [[False], [False]]


def test_certain_and_impossible_persons_have_finite_probabilities():
    given = [Proposals(torch.zeros(2, 4), torch.tensor([1.0, 0.0]))]
    located = ExternalBoxes()([], torch.tensor([[32, 48]]), given)
    assert located.person_logits.softmax(-1)[0, 0, :, 0].tolist() == [1, 0]


def test_missing_boxes_are_an_error_that_names_the_keys(tiny_external, tiny_batch):
    batch = tiny_batch()
    with pytest.raises(
        ValueError, match=r"model/localization=external .* data\.proposals\.train and data\.proposals\.val"
    ):
        tiny_external()(batch.clips, batch.sizes)


@pytest.mark.parametrize("name", HEADS)
def test_clips_with_any_number_of_boxes_equal_single_ones(tiny_external, tiny_batch, name):
    """Padding to the longest list changes no actor's actions."""
    model, batch, given = tiny_external(f"model/classifier={name}"), tiny_batch(), proposals(4, 2)
    for training in (True, False):
        model.train(training)
        with torch.set_grad_enabled(training):  # attention takes another way without gradients
            together = model(batch.clips, batch.sizes, given)
            for clip, count in enumerate((4, 2)):
                part = slice(clip, clip + 1)
                single = model(batch.clips[part], batch.sizes[part], given[part])
                logits = together.action_logits[:, part, :count]
                torch.testing.assert_close(logits, single.action_logits, rtol=0, atol=1e-10)
                assert torch.equal(together.boxes[:, part, :count], single.boxes)


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("people", [(2, 1), (0, 2), (0, 0)], ids=["two clips", "one empty clip", "no box at all"])
def test_every_parameter_has_a_gradient(tiny_external, tiny_batch, name, people):
    """None would stop distributed training, which waits for every parameter."""
    model, batch = tiny_external(f"model/classifier={name}"), tiny_batch(people)
    output = model(batch.clips, batch.sizes, annotated(batch))
    losses = ActionCriterion()(output, batch.targets, batch.sizes)
    assert [len(term) for term in (losses.person, losses.l1, losses.giou)] == [0, 0, 0]
    losses.action.mean().backward()
    assert losses.action.isfinite().all()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []
    if sum(people):
        assert [key for key, p in model.named_parameters() if p.grad.abs().sum() == 0] == []
    else:
        assert losses.action.tolist() == [0] * len(losses.action)


def external_output(boxes, logits):
    """(B, Q, 4) boxes and (D', B, Q, K) logits as a detector's output."""
    persons = torch.zeros(1, *boxes.shape[:2], 2, dtype=boxes.dtype)
    nothing = torch.zeros(0)
    return EVADOutput(persons, boxes[None], logits, nothing, nothing, nothing, [])


def test_loss_by_hand():
    """Each box learns the actions of the person it overlaps most; a box of nobody learns nothing."""
    boxes = torch.tensor([[[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 8], [0, 20, 10, 30], [0, 0, 0, 0]]])
    truth = Target(torch.tensor([[20.0, 0, 30, 9], [0, 0, 10, 10]]), torch.tensor([[1.0, 0], [0, 1]]))
    logits = torch.arange(20.0).view(2, 1, 5, 2) / 7 - 1
    losses = ActionCriterion()(external_output(boxes, logits), [truth], torch.tensor([[32, 48]]))
    labels = torch.tensor([[0.0, 1], [1, 0], [0, 1]])  # IoU 1, 0.9 and 0.8
    for block in range(2):
        expected = binary_cross_entropy_with_logits(logits[block, 0, :3], labels)
        assert losses.action[block].item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize(("iou", "matched"), [(0.5, [0, 1]), (0.81, [0])])
def test_overlap_below_the_threshold_belongs_to_nobody(iou, matched):
    boxes = torch.tensor([[[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 4], [3, 3, 3, 3]]])
    truth = [Target(torch.tensor([[0.0, 0, 10, 10]]), torch.ones(1, 1))]
    ((queries, index),) = OverlapMatcher(iou)(torch.zeros(1, 4, 2), boxes, truth, torch.tensor([[32, 48]]))
    assert (queries.tolist(), index.tolist()) == (matched, [0] * len(matched))


def test_box_without_area_matches_nothing():
    point = torch.full((1, 1, 4), 3.0)
    truth = [Target(point[0], torch.ones(1, 1))]
    ((queries, _),) = OverlapMatcher()(torch.zeros(1, 1, 2), point, truth, torch.tensor([[32, 48]]))
    assert queries.tolist() == []


def test_detections_are_the_given_boxes_with_the_detectors_scores(tiny_external, tiny_batch):
    model, batch, given = tiny_external().eval(), tiny_batch(), proposals(3, 0)
    output = model(batch.clips, batch.sizes, given)
    postprocess = PostProcess("action", person_threshold=0.0, keep_all_if_none=False)
    found, none = postprocess(output, batch.sizes, batch.original_sizes)
    torch.testing.assert_close(found.person_scores, given[0].scores.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        found.boxes, 3 * given[0].boxes.float(), rtol=0, atol=1e-4
    )  # the video is 3 times as big
    assert len(none.boxes) == 0
    ranked = PostProcess("person_times_action", 0.0, False)(output, batch.sizes, batch.original_sizes)[0]
    expected = found.action_scores * found.person_scores[:, None]
    torch.testing.assert_close(ranked.action_scores, expected, rtol=0, atol=1e-7)


def test_training_step_has_the_action_terms_alone(tiny_external, tiny_batch, tiny_config, monkeypatch):
    from evad.runs.build import build_part

    cfg = load_config(["experiment=ava_vitb_two_stage"])
    module = EVADModule(
        tiny_external(dtype=torch.float32),
        build_criterion(cfg),
        build_part(cfg, "recipe"),
        build_part(cfg, "postprocess"),
    )
    logged = {}
    monkeypatch.setattr(module, "log_dict", lambda values, **_: logged.update(values))
    monkeypatch.setattr(module, "log", lambda *_, **__: None)
    monkeypatch.setattr(module, "epoch_now", lambda: 0.0)
    batch = tiny_batch(dtype=torch.float32)
    batch = replace(batch, proposals=annotated(batch))
    loss = module.training_step(batch, 0)
    assert logged.keys() == {"train/loss", "train/action", "train/action_last"}
    assert loss.item() == pytest.approx(12 * logged["train/action"].item(), rel=1e-6)


def test_criterion_follows_the_localization():
    assert isinstance(build_criterion(load_config([])), SetCriterion)
    assert isinstance(build_criterion(load_config([EXTERNAL])), ActionCriterion)


@pytest.mark.parametrize("model", ["vitb", "vitl", "mini"])
def test_every_size_takes_external_boxes(model):
    with torch.device("meta"):
        detector = build_model(load_config([f"model={model}", EXTERNAL]))
    assert [name for name, _ in detector.named_parameters() if name.startswith(OWN)] == []


@pytest.mark.parametrize("name", HEADS)
def test_executed_count_is_what_torch_counts(tiny_external, tiny_batch, name):
    model, batch = tiny_external(f"model/classifier={name}").eval(), tiny_batch((2,))
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        output = model(batch.clips, batch.sizes, proposals(EXTERNAL_ACTORS))
    branch = model.classification
    volume = torch.zeros(1, 96, len(branch.mask_token), dtype=torch.float64)
    with FlopCounterMode(display=False) as roi_align:  # which neither count includes
        branch.roi(volume, (4, 4, 6), output.boxes[-1], batch.sizes)
    counted = (counter.get_total_flops() - roi_align.get_total_flops()) / 2
    assert sum(executed_macs(model, 8, 32, 48).values()) == counted


def test_cost_has_no_localization_and_counts_some_actors(tiny_model, tiny_external):
    before, after = (paper_macs(model, 8, 32, 48) for model in (tiny_model(), tiny_external()))
    assert (after["pyramid"], after["localization"]) == (0, 0)
    assert (after["patch_embed"], after["encoder"]) == (before["patch_embed"], before["encoder"])
    as_many = paper_macs(tiny_model(f"model.num_queries={EXTERNAL_ACTORS}"), 8, 32, 48)
    assert after["classification"] == as_many["classification"]
