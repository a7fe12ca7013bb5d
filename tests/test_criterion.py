"""Matching and losses, by hand and against brute force; their normalisation over ranks."""

import itertools
import math
from dataclasses import replace
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from scipy.optimize import linear_sum_assignment
from torchvision.ops import generalized_box_iou

from evad.models import criterion as module
from evad.models.criterion import HungarianMatcher, SetCriterion, solve
from evad.structures import EVADOutput, Target

SIZES = torch.tensor([[200, 100]])  # height, width
D = torch.float64


def output_of(person_logits, boxes, action_logits):
    """Output with the given predictions; the fields the criterion does not read are empty."""
    none = torch.empty(0)
    tensors = [torch.as_tensor(value, dtype=D).requires_grad_() for value in (person_logits, boxes, action_logits)]
    return EVADOutput(*tensors, roi_features=none, tokens=none, positions=none, kept=[])


def target(boxes, labels):
    return Target(torch.tensor(boxes, dtype=D).view(-1, 4), torch.tensor(labels, dtype=D).view(len(boxes), -1))


def no_boxes(classes=2):
    return Target(torch.zeros(0, 4, dtype=D), torch.zeros(0, classes, dtype=D))


FAR = [80.0, 150, 95, 190]


def test_every_term_by_hand():
    """One stage, two queries, one person: query 1 is nearer and matched."""
    output = output_of(
        person_logits=[[[[0, 0], [math.log(3), 0]]]],  # p(person) = 1/2 and 3/4
        boxes=[[[FAR, [10.0, 10, 50, 50]]]],
        action_logits=[[[[9, 9], [0, math.log(3)]]]],
    )
    losses = SetCriterion()(output, [target([[20, 10, 50, 60]], [[1, 0]])], SIZES)
    person = (-math.log(3 / 4) - 0.1 * math.log(1 / 2)) / (1 + 0.1)
    l1 = 10 / 100 + 0 + 0 + 10 / 200
    giou = (30 * 40) / (40 * 40 + 30 * 50 - 30 * 40) - (40 * 50 - 1900) / (40 * 50)
    action = (math.log(2) + math.log(1 + 3)) / 2
    for ours, expected in zip([losses.person, losses.l1, losses.giou, losses.action], [person, l1, 1 - giou, action]):
        assert ours.tolist() == pytest.approx([expected], abs=1e-12)


def test_background_weight_by_hand():
    output = output_of([[[[0, 0], [math.log(3), 0]]]], [[[FAR, [10.0, 10, 50, 50]]]], [[[[0, 0], [0, 0]]]])
    losses = SetCriterion(background_weight=0.5)(output, [target([[20, 10, 50, 60]], [[1, 0]])], SIZES)
    assert losses.person.item() == pytest.approx((-math.log(3 / 4) - 0.5 * math.log(1 / 2)) / 1.5)


def test_boxes_are_divided_by_each_clip_s_own_size_and_by_the_number_of_boxes():
    boxes = [[[0.0, 0, 10, 10]], [[0.0, 0, 10, 10]]]
    output = output_of([[[[0, 0]], [[0, 0]]]], [boxes], [[[[0]], [[0]]]])
    targets = [target([[0, 0, 20, 10]], [[1]]), target([[0, 0, 20, 30]], [[1]])]
    losses = SetCriterion()(output, targets, torch.tensor([[200, 100], [50, 40]]))
    assert losses.l1.tolist() == pytest.approx([(10 / 100 + 10 / 40 + 20 / 50) / 2])
    assert losses.giou.tolist() == pytest.approx([((1 - 100 / 200) + (1 - 100 / 600)) / 2])


def test_each_stage_has_its_own_matching_and_actions_use_the_last():
    near, far = [10.0, 10, 50, 50], FAR
    output = output_of(
        [[[[0, 0], [0, 0]]]] * 2, [[[near, far]], [[far, near]]], [[[[5, 5], [0, 0]]], [[[7, 7], [math.log(3), 0]]]]
    )
    losses = SetCriterion()(output, [target([near], [[1, 0]])], SIZES)
    assert losses.l1.tolist() == losses.giou.tolist() == [0, 0]
    expected = [math.log(2), (math.log(4 / 3) + math.log(2)) / 2]  # query 1, in both decoder blocks
    assert losses.action.tolist() == pytest.approx(expected)
    assert losses.person.shape == (2,)


def test_action_loss_is_one_mean_over_all_actors_of_the_batch():
    """Two actors in one clip, one in the other: every actor counts alike."""
    boxes = [[[0.0, 0, 10, 10], [50, 50, 70, 70]], [[0.0, 0, 10, 10], [50, 50, 70, 70]]]
    logits = [[[[0.0], [math.log(3)]], [[math.log(7)], [100]]]]
    targets = [target(boxes[0], [[0], [0]]), target(boxes[1][:1], [[0]])]
    losses = SetCriterion()(output_of([[[[0, 0]] * 2] * 2], [boxes], logits), targets, SIZES.repeat(2, 1))
    assert losses.action.tolist() == pytest.approx([(math.log(2) + math.log(4) + math.log(8)) / 3])


def test_clip_without_boxes_is_background():
    boxes = [[[0.0, 0, 10, 10]], [[0.0, 0, 10, 10]]]
    output = output_of([[[[0, 0]], [[0, math.log(3)]]]], [boxes], [[[[0, 0]], [[9, 9]]]])
    losses = SetCriterion()(output, [target(boxes[0], [[1, 0]]), no_boxes()], SIZES.repeat(2, 1))
    assert losses.person.item() == pytest.approx((math.log(2) + 0.1 * math.log(4 / 3)) / 1.1)
    assert losses.l1.item() == losses.giou.item() == 0
    assert losses.action.item() == pytest.approx(math.log(2))


def test_batch_without_boxes_has_no_action_loss_but_a_graph():
    output = output_of([[[[0, 0]] * 3] * 2] * 2, torch.rand(2, 2, 3, 4), torch.randn(4, 2, 3, 5))
    losses = SetCriterion()(output, [no_boxes(5), no_boxes(5)], SIZES.repeat(2, 1))
    assert losses.person.tolist() == pytest.approx([math.log(2)] * 2)
    assert losses.l1.tolist() == losses.giou.tolist() == [0, 0]
    assert losses.action.tolist() == [0] * 4
    torch.cat([losses.person, losses.l1, losses.giou, losses.action]).sum().backward()
    assert output.boxes.grad.abs().sum() == output.action_logits.grad.abs().sum() == 0
    assert output.person_logits.grad.abs().sum() > 0


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.randn(1, 2, 100, 2, generator=torch.Generator().manual_seed(0)).bfloat16()
    boxes = torch.rand(1, 2, 100, 4)
    actions = torch.randn(1, 2, 100, 2).bfloat16()
    none = torch.empty(0)
    targets = [Target(torch.tensor([[10.0, 10, 50, 50]]), torch.tensor([[1.0, 0]]))] * 2
    losses = [
        SetCriterion()(EVADOutput(p, boxes, a, none, none, none, []), targets, SIZES.repeat(2, 1))
        for p, a in [(logits, actions), (logits.float(), actions.float())]
    ]
    assert losses[0].person.dtype == losses[0].action.dtype == torch.float32
    assert losses[0].person.item() == losses[1].person.item()
    assert losses[0].action.item() == losses[1].action.item()


def random_case(seed, queries=5, n=3):
    generator = torch.Generator().manual_seed(seed)
    corner, extent = torch.rand(2, queries + n, 2, generator=generator, dtype=D)
    boxes = torch.cat([corner, corner + 0.1 + extent], dim=1) * torch.tensor([100, 200, 100, 200])
    return torch.randn(queries, 2, generator=generator, dtype=D), boxes[:queries], boxes[queries:]


def explicit_cost(logits, boxes, truth, person, l1, giou):
    scale = torch.tensor([100.0, 200, 100, 200], dtype=D)
    distance = (boxes[:, None] / scale - truth[None] / scale).abs().sum(-1)
    return l1 * distance - person * logits.softmax(-1)[:, :1] - giou * generalized_box_iou(boxes, truth)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("weights", [(2, 5, 2), (0, 1, 0), (9, 0, 0), (0, 0, 1)])
def test_matching_is_the_cheapest_of_all(seed, weights):
    logits, boxes, truth = random_case(seed)
    cost = explicit_cost(logits, boxes, truth, *weights)
    matcher = HungarianMatcher(*weights)
    ((queries, index),) = matcher(logits[None], boxes[None], [Target(truth, torch.zeros(3, 1))], SIZES)
    cheapest = min(
        sum(cost[query, box].item() for box, query in enumerate(order)) for order in itertools.permutations(range(5), 3)
    )
    assert cost[queries, index].sum().item() == pytest.approx(cheapest, abs=1e-12)
    assert sorted(index.tolist()) == [0, 1, 2]
    assert queries.tolist() == sorted(set(queries.tolist()))


def test_more_boxes_than_queries_match_every_query():
    logits, boxes, truth = random_case(0, queries=2, n=4)
    ((queries, index),) = HungarianMatcher()(logits[None], boxes[None], [Target(truth, torch.zeros(4, 1))], SIZES)
    assert queries.tolist() == [0, 1]
    assert len(set(index.tolist())) == 2


def test_clips_are_matched_one_by_one():
    cases = [random_case(seed, n=n) for seed, n in [(0, 3), (1, 0), (2, 1)]]
    logits, boxes = torch.stack([case[0] for case in cases]), torch.stack([case[1] for case in cases])
    targets = [Target(case[2], torch.zeros(len(case[2]), 1)) for case in cases]
    sizes = torch.tensor([[200, 100], [90, 80], [50, 120]])
    together = HungarianMatcher()(logits, boxes, targets, sizes)
    assert [len(queries) for queries, _ in together] == [3, 0, 1]
    for i, (queries, index) in enumerate(together):
        part = slice(i, i + 1)
        ((alone, alone_index),) = HungarianMatcher()(logits[part], boxes[part], targets[part], sizes[part])
        assert torch.equal(queries, alone)
        assert torch.equal(index, alone_index)


def several_stages(counts, stages=3, queries=5, classes=4):
    """Output with random predictions for clips of one size with so many boxes each, and the targets."""
    generator = torch.Generator().manual_seed(0)
    batch = len(counts)
    cases = [random_case(seed, queries, n=8) for seed in range(stages * batch)]
    logits, boxes = (torch.stack([case[i] for case in cases]).unflatten(0, (stages, batch)) for i in range(2))
    actions = torch.randn(2, batch, queries, classes, generator=generator, dtype=D)
    labels = [(torch.rand(n, classes, generator=generator) < 0.4).to(D) for n in counts]
    targets = [Target(cases[clip][2][:n], label) for clip, (n, label) in enumerate(zip(counts, labels))]
    return output_of(logits, boxes, actions), targets, SIZES.repeat(batch, 1)


COUNTS = [(3, 0, 1), (2, 2, 2), (0, 0), (8, 1, 0)]  # 8 are more than there are queries


@pytest.mark.parametrize("counts", COUNTS)
def test_stages_are_matched_together_as_each_clip_of_each_by_itself(counts):
    output, targets, sizes = several_stages(counts)
    flat = HungarianMatcher().match_stages(output.person_logits, output.boxes, targets, sizes)
    assert flat.dtype == torch.int64
    for logits, boxes, stage in zip(output.person_logits.detach(), output.boxes.detach(), flat.tolist()):
        expected = []
        for clip, target in enumerate(targets):
            cost = explicit_cost(logits[clip], boxes[clip], target.boxes, 2, 5, 2)
            rows, columns = linear_sum_assignment(cost.numpy())
            expected += [(5 * clip + row, sum(counts[:clip]) + column) for row, column in zip(rows, columns)]
            ((queries, index),) = HungarianMatcher()(logits[clip : clip + 1], boxes[clip : clip + 1], [target], SIZES)
            assert (queries.tolist(), index.tolist()) == (rows.tolist(), columns.tolist())
        assert list(zip(*stage)) == expected


@pytest.mark.parametrize("counts", COUNTS)
def test_losses_of_stages_together_are_those_of_each_by_itself(counts):
    output, targets, sizes = several_stages(counts)
    together = SetCriterion()(output, targets, sizes)
    for stage in range(3):
        part = slice(stage, stage + 1)
        alone = replace(output, person_logits=output.person_logits[part], boxes=output.boxes[part])
        single = SetCriterion()(alone, targets, sizes)
        for name in ("person", "l1", "giou"):
            assert torch.equal(getattr(together, name)[part], getattr(single, name)), name
    assert torch.equal(together.action, single.action)  # both by the last stage


def test_padding_of_clips_with_fewer_boxes_is_not_read():
    """A point at the origin has no IoU with the padding, which is such a point, too."""
    boxes = [[[10.0, 10, 50, 50], FAR], [[0.0, 0, 0, 0], FAR]]
    output = output_of(torch.zeros(1, 2, 2, 2), [boxes], torch.zeros(1, 2, 2, 1))
    targets = [target(boxes[0], [[1], [1]]), target([FAR], [[1]])]
    losses = SetCriterion()(output, targets, SIZES.repeat(2, 1))
    assert losses.l1.tolist() == losses.giou.tolist() == [0]


def test_all_stages_and_clips_wait_for_the_device_once(monkeypatch):
    output, targets, sizes = several_stages((3, 0, 1))
    waits = []
    for name in ("cpu", "item", "tolist", "nonzero", "__bool__", "__float__", "__int__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, name=name, original=original):
            waits.append(name)
            return original(self, *args)

        monkeypatch.setattr(torch.Tensor, name, counted)
    SetCriterion()(output, targets, sizes)
    assert waits == ["cpu"]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_cost_that_is_not_finite_is_an_error(value):
    logits, boxes, truth = random_case(0)
    boxes[2, 1] = value
    with pytest.raises(ValueError, match="matching cost is not finite: the predicted boxes or logits are NaN"):
        HungarianMatcher()(logits[None], boxes[None], [Target(truth, torch.zeros(3, 1))], SIZES)
    with pytest.raises(ValueError, match="not finite"):
        solve(torch.tensor([[value]]).numpy())


def test_normalisers_are_averages_over_ranks(monkeypatch):
    """As if another rank had 5 boxes: this one's single box is divided by the mean of 1 and 5."""
    output = output_of([[[[0, 0]]]], [[[[10.0, 10, 50, 50]]]], [[[[0.0, 0]]]])
    targets = [target([[20, 10, 50, 60]], [[1, 0]])]
    alone = SetCriterion()(output, targets, SIZES)
    monkeypatch.setattr(module.dist, "is_initialized", lambda: True)
    monkeypatch.setattr(module.dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(module.dist, "all_reduce", lambda value: value.mul_(6))
    together = SetCriterion()(output, targets, SIZES)
    for name in ("person", "l1", "giou", "action"):
        assert getattr(together, name).item() == pytest.approx(getattr(alone, name).item() / 3)


def weighted_loss(model, batch):
    losses = SetCriterion()(model(batch.clips, batch.sizes), batch.targets, batch.sizes)
    return torch.cat([2 * losses.person, 5 * losses.l1, 2 * losses.giou, 12 * losses.action]).mean()


def part_of(batch, rows):
    return type(batch)(
        batch.clips[rows], batch.sizes[rows], batch.targets[rows], batch.keyframes[rows], batch.original_sizes[rows]
    )


def train_rank(rank, folder, model, batch):
    """One of two processes: two steps through DistributedDataParallel on its half of the batch."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    for _ in range(2):  # a parameter without gradient would show in the second step
        parallel.zero_grad()
        weighted_loss(parallel, part_of(batch, slice(2 * rank, 2 * rank + 2))).backward()
    torch.save([parameter.grad for parameter in model.parameters()], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("boxes", [(2, 1, 0, 3), (3, 1, 0, 0)], ids=["boxes on both", "one rank without boxes"])
def test_two_ranks_train_like_one_process_with_the_joint_batch(tiny_model, tiny_batch, tmp_path, boxes):
    model, batch = tiny_model(), tiny_batch(boxes)
    mp.spawn(train_rank, args=(str(tmp_path), model, batch), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    weighted_loss(model, batch).backward()
    for name, first, second, joint in zip(dict(model.named_parameters()), *ranks, [p.grad for p in model.parameters()]):
        assert torch.equal(first, second), name
        torch.testing.assert_close(first, joint, rtol=1e-9, atol=1e-12, msg=name)


@pytest.mark.slow
def test_two_ranks_without_any_box_train(tiny_model, tiny_batch, tmp_path):
    model, batch = tiny_model(), tiny_batch((0, 0, 0, 0))
    mp.spawn(train_rank, args=(str(tmp_path), model, batch), nprocs=2)
    assert all(gradient.isfinite().all() for gradient in torch.load(tmp_path / "0.pt"))
