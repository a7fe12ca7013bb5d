"""Error decomposition: exact bounds on hand-made detections, and a detector that is given the annotated boxes."""

import numpy as np
import pytest
import torch
from lightning import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from evad.metrics.decomposition import Decomposition, with_true_classes
from evad.metrics.frame_map import AVAFrameMAP
from evad.metrics.tube_map import TubeMAP
from evad.models.criterion import SetCriterion
from evad.models.postprocess import PostProcess
from evad.structures import Batch, Detections, Keyframe, Target
from evad.training.decomposing import DecomposingModule, true_detections, with_true_boxes
from evad.training.module import EVADModule

SIZE = torch.tensor([50, 100])  # height, width
LEFT, RIGHT, MIDDLE = [0, 0, 0.4, 1], [0.6, 0, 1, 1], [0.4, 0.4, 0.6, 0.6]


def keyframe(number, boxes, labels, video="v"):
    labels = np.array(labels, dtype=np.float32).reshape(len(boxes), -1 if len(boxes) else 3)
    boxes = np.array(boxes, dtype=np.float64).reshape(-1, 4)
    return Keyframe(video, str(number), float(number - 1), boxes, labels, np.arange(len(boxes)))


KEYFRAMES = [
    keyframe(1, [LEFT, RIGHT], [[1, 0, 0], [0, 1, 1]]),
    keyframe(2, [], []),
    keyframe(3, [LEFT], [[0, 1, 0]]),
]


def found(boxes, actions, persons=None):
    boxes = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4) * SIZE.flip(0).repeat(2)
    persons = torch.ones(len(boxes)) if persons is None else torch.tensor(persons)
    return Detections(boxes, persons, torch.tensor(actions, dtype=torch.float64).reshape(-1, 3), SIZE)


@pytest.fixture(params=[AVAFrameMAP, TubeMAP])
def metric(request):
    return request.param(KEYFRAMES, [0, 1, 2])


def test_classes_of_nobody_under_the_box_are_struck(metric):
    metric.update(
        torch.tensor([2, 0, 1]),
        [
            found([LEFT], [[0.9, 0.8, 0.7]]),
            found([RIGHT, MIDDLE, LEFT], [[0.1, 0.2, 0.3], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]]),
            found([LEFT], [[0.9, 0.9, 0.9]]),
        ],
    )
    gathered = metric.gathered()
    struck = with_true_classes(metric, gathered)
    expected = [[0, 0.2, 0.3], [0, 0, 0], [0.7, 0, 0], [0, 0, 0], [0, 0.8, 0]]
    np.testing.assert_array_equal(struck.action_scores, expected)
    np.testing.assert_array_equal(struck.boxes, gathered.boxes)
    before, after = metric.scores(gathered)["mAP"], metric.scores(struck)["mAP"]
    assert before < after == 1


def test_a_box_between_two_persons_keeps_the_classes_of_both():
    both = [keyframe(1, [[0, 0, 0.5, 1], [0.1, 0, 0.6, 1]], [[1, 0, 0], [0, 1, 0]])]
    metric = AVAFrameMAP(both, [0, 1, 2])
    metric.update(torch.tensor([0]), [found([[0.05, 0, 0.55, 1]], [[0.1, 0.2, 0.3]])])
    assert with_true_classes(metric, metric.gathered()).action_scores.tolist() == [[0.1, 0.2, 0]]


@pytest.mark.parametrize("kind", [AVAFrameMAP, TubeMAP])
@pytest.mark.parametrize("seed", range(6))
def test_true_classes_never_lower_the_frame_map(kind, seed):
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.uniform(0, 0.5, (n, 2))
        return np.concatenate([corner, corner + rng.uniform(0.2, 0.5, (n, 2))], axis=1)

    frames = [keyframe(i + 1, boxes(n), rng.uniform(size=(n, 3)) < 0.5) for i, n in enumerate(rng.integers(0, 4, 12))]
    metric = kind(frames, [0, 1, 2])
    detections = []
    for frame in frames:
        near = frame.boxes + rng.normal(0, 0.03, frame.boxes.shape)
        guesses = np.concatenate([near, near + 0.01, boxes(2)]).clip(0, 1)
        detections.append(found(guesses.tolist(), rng.uniform(size=(len(guesses), 3)).tolist()))
    metric.update(torch.arange(len(frames)), detections)
    gathered = metric.gathered()
    assert metric.scores(with_true_classes(metric, gathered))["mAP"] >= metric.scores(gathered)["mAP"] > 0


def test_nothing_detected_stays_nothing(metric):
    metric.update(torch.tensor([0, 1]), [found([], []), found([], [])])
    assert with_true_classes(metric, metric.gathered()).action_scores.shape == (0, 3)


def test_true_boxes_replace_those_of_matched_queries():
    boxes = torch.arange(24.0).view(2, 3, 4)
    targets = [
        Target(torch.tensor([[1.0, 2, 3, 4], [5, 6, 7, 8]]), torch.zeros(2, 3)),
        Target(torch.zeros(0, 4), torch.zeros(0, 3)),
    ]
    none = torch.zeros(0, dtype=torch.int64)
    replaced = with_true_boxes(boxes, targets, [(torch.tensor([0, 2]), torch.tensor([1, 0])), (none, none)])
    assert replaced[0].tolist() == [[5, 6, 7, 8], [4, 5, 6, 7], [1, 2, 3, 4]]
    assert torch.equal(replaced[1], boxes[1])
    assert boxes[0, 0].tolist() == [0, 1, 2, 3]


def test_true_detections_are_the_annotated_boxes_with_the_scores_of_their_queries():
    metric = AVAFrameMAP(KEYFRAMES, [0, 1, 2])
    scores = torch.arange(18.0).view(2, 3, 3)
    batch = Batch(torch.zeros(2, 3, 1, 8, 8), torch.tensor([[8, 8]] * 2), [], torch.tensor([2, 0]), SIZE.expand(2, 2))
    matches = [(torch.tensor([1]), torch.tensor([0])), (torch.tensor([0, 2]), torch.tensor([1, 0]))]
    third, first = true_detections(metric, batch, matches, scores)
    torch.testing.assert_close(third.boxes, torch.tensor([[0.0, 0, 40, 50]]))
    torch.testing.assert_close(first.boxes, torch.tensor([[60.0, 0, 100, 50], [0, 0, 40, 50]]))
    assert third.action_scores.tolist() == [[3, 4, 5]]
    assert first.action_scores.tolist() == [[9, 10, 11], [15, 16, 17]]
    assert first.person_scores.tolist() == [1, 1]


# A detector in Lightning


class TinyData(LightningDataModule):
    """Two random clips as a data set of two keyframes, in one batch or one by one."""

    def __init__(self, batch, kind, size):
        super().__init__()
        self.batches = [batch] if size == 2 else [part(batch, i) for i in range(2)]
        scale = batch.sizes.flip(1).repeat(1, 2)
        self.keyframes = [
            Keyframe("v", str(i + 1), float(i), (t.boxes / s).numpy(), t.labels.numpy(), np.arange(len(t.boxes)))
            for i, (t, s) in enumerate(zip(batch.targets, scale))
        ]
        self.kind = kind

    def build_metric(self):
        return self.kind(self.keyframes, range(5))

    def val_dataloader(self):
        return DataLoader(self.batches, batch_size=None)


def part(batch, i):
    one = slice(i, i + 1)
    return Batch(
        batch.clips[one], batch.sizes[one], batch.targets[one], batch.keyframes[one], batch.original_sizes[one]
    )


def validated(kind, model, data, threshold=0.0):
    module = kind(model, SetCriterion(), None, PostProcess(person_threshold=threshold, keep_all_if_none=False))
    trainer = Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.validate(module, data, verbose=False)
    return module


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [AVAFrameMAP, TubeMAP])
def test_one_pass_gives_the_scores_of_the_detector_and_of_the_true_boxes(tiny_model, tiny_batch, kind):
    batch = tiny_batch()
    batch.targets = [Target(target.boxes, torch.ones_like(target.labels)) for target in batch.targets]
    data = TinyData(batch, kind, size=2)
    model = tiny_model()
    plain = validated(EVADModule, model, data)
    module = validated(DecomposingModule, model, data)
    assert module.scores == plain.scores
    result = module.decomposition()
    assert result.detected["mAP"] == pytest.approx(plain.scores["mAP"])
    assert result.true_boxes["mAP"] == 1  # everybody does everything
    assert result.persons == 3
    assert set(result.detected) == set(result.true_boxes) >= set(result.true_classes) == {"mAP"}
    assert ("video_mAP@0.5" in result.detected) == (kind is TubeMAP)
    assert result.true_classes["mAP"] >= result.detected["mAP"]


@pytest.mark.filterwarnings("ignore")
def test_true_box_scores_are_the_classification_of_those_boxes_and_do_not_depend_on_the_batch(tiny_model, tiny_batch):
    batch = tiny_batch()
    model = tiny_model().eval()
    together = validated(DecomposingModule, model, TinyData(batch, AVAFrameMAP, size=2)).true_box_metric.gathered()
    encoded = model.encoder(batch.clips)
    located = model.localize(encoded, batch.sizes)
    matches = SetCriterion().matcher(located.person_logits[-1], located.boxes[-1], batch.targets, batch.sizes)
    given = with_true_boxes(located.boxes[-1], batch.targets, matches)
    actions = model.classify(encoded, located, given, batch.sizes).action_logits[-1].float().sigmoid()
    expected = torch.cat([actions[clip, queries] for clip, (queries, _) in enumerate(matches)])
    np.testing.assert_allclose(together.action_scores, expected.detach().numpy())
    truth = torch.cat([3 * batch.targets[clip].boxes[index] for clip, (_, index) in enumerate(matches)])
    np.testing.assert_allclose(together.boxes, truth.numpy(), rtol=1e-6)


def result(**changes):
    values = {
        "detected": {"mAP": 0.5, "video_mAP@0.5": 0.25},
        "true_boxes": {"mAP": 0.6, "video_mAP@0.5": float("nan")},
        "true_classes": {"mAP": 0.9},
        "person_recall": 0.875,
        "person_precision": 0.5,
        "persons": 8,
        "person_threshold": 0.7,
    }
    return Decomposition(**(values | changes))


def test_table_names_what_limits_more():
    table = result().table().splitlines()
    assert table[1].split() == ["detected", "0.5000", "0.2500"]
    assert table[3].split() == ["with", "true", "classes", "0.9000", "-"]
    assert table[-2] == "persons: recall 0.8750, precision 0.5000 at IoU 0.5 and person score >= 0.7 (8 annotated)"
    assert table[-1] == "classification limits more: true boxes add +0.1000 mAP, true classes +0.4000"
    better_boxes = result(true_boxes={"mAP": 1.0, "video_mAP@0.5": 1.0}).table().splitlines()
    assert better_boxes[-1] == "localization limits more: true boxes add +0.5000 mAP, true classes +0.4000"


def test_report_is_plain_json_without_undefined_numbers():
    report = result().as_json()
    assert report["true_boxes"] == {"mAP": 0.6, "video_mAP@0.5": None}
    assert report["person_recall"] == 0.875


@pytest.mark.filterwarnings("ignore")
def test_recall_counts_persons_found_at_the_person_threshold(tiny_model, tiny_batch):
    data = TinyData(tiny_batch(), AVAFrameMAP, size=1)
    model = tiny_model()
    everything = validated(DecomposingModule, model, data)
    gathered = everything.metric.gathered()
    counts = everything.metric.person_result(gathered, "activitynet_2018", 0.5).counts[0]
    one = everything.decomposition()
    assert one.person_recall == counts.true_positives / 3
    assert one.person_precision == counts.true_positives / len(gathered.boxes)
    nobody = validated(DecomposingModule, model, data, threshold=1.0).decomposition()
    assert (nobody.person_recall, nobody.person_precision, nobody.person_threshold) == (0, 0, 1)
    assert nobody.true_classes["mAP"] == 0 < nobody.true_boxes["mAP"]
