"""DataModules: an AVA folder -> loaders, in every layout, with clear errors."""

import lightning
import pytest
import torch
from media import numbered_frames, write_frames, write_video

from evad.data.clips.ava import AVADataModule
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.data.video.images import FrameReader
from evad.data.video.readers import PyAVReader
from evad.structures import Detections

FPS = 10
TRAIN = ["a,902,0.25,0,0.5,1,1,0", "a,902,0.25,0,0.5,1,3,0", "a,903,0.5,0.5,1,1,80,0", "b,902,0,0,1,1,2,0", "b,904"]
VAL = ["c,903,0,0,0.5,0.5,1,0", "c,904,0,0,0.5,0.5,2,0"]
LABEL_MAP = 'item {\n  name: "run"\n  id: 1\n}\nitem {\n  name: "wave"\n  id: 3\n}\n'


@pytest.fixture
def root(tmp_path):
    """AVA v2.2 with three videos of five seconds at 10 frames per second."""
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "ava_train_v2.2.csv").write_text("\n".join(TRAIN))
    (annotations / "ava_val_v2.2.csv").write_text("\n".join(VAL))
    (annotations / "ava_val_excluded_timestamps_v2.2.csv").write_text("c,904\n")
    (annotations / "ava_action_list_v2.2_for_activitynet_2019.pbtxt").write_text(LABEL_MAP)
    for video in "abc":
        write_video(tmp_path / "videos" / f"{video}.mp4", numbered_frames(5 * FPS), FPS)
    return tmp_path


def module(root, **settings):
    settings = {
        "sampler": ClipSampler(4, 5, annotated_fps=FPS),
        "train_transform": VideoTransform(32, flip=0.5, color_jitter=0.3),
        "val_transform": VideoTransform(32),
        "batch_size": 2,
        "num_workers": 0,
        **settings,
    }
    return AVADataModule(root, **settings)


def ready(root, stage="fit", **settings):
    data = module(root, **settings)
    data.setup(stage)
    return data


def keys(dataset):
    return [(keyframe.video, keyframe.timestamp) for keyframe in dataset.keyframes]


def test_ava_folder_gives_both_splits(root):
    data = ready(root)
    assert keys(data.train_dataset) == [("a", "902"), ("a", "903"), ("b", "902"), ("b", "904")]
    assert keys(data.val_dataset) == [("c", "903")]  # 904 is excluded
    assert data.num_classes == 80
    assert data.class_ids == list(range(1, 81))
    assert data.class_names == {1: "run", 3: "wave"}
    assert data.evaluated == [1, 3]


def test_validation_alone_needs_no_training_file(root):
    (root / "annotations/ava_train_v2.2.csv").unlink()
    data = ready(root, "validate")
    assert len(data.val_dataset) == 1
    with pytest.raises(RuntimeError, match=r"the train set is not available yet; call setup\('fit'\)"):
        data.train_dataset  # noqa: B018


def test_validation_batch_has_the_annotated_frames(root):
    (batch,) = ready(root).val_dataloader()
    assert batch.clips.shape == (1, 3, 4, 32, 64)
    assert batch.sizes.tolist() == [[32, 40]]
    truth = torch.from_numpy(numbered_frames(50)[[20, 25, 30, 35]]).permute(3, 0, 1, 2)
    torch.testing.assert_close(batch.clips[0, ..., :40], (truth / 255 - 0.45) / 0.225)
    assert batch.targets[0].boxes.tolist() == [[0, 0, 20, 16]]
    assert batch.targets[0].labels.nonzero().tolist() == [[0, 0]]


def test_training_batches_cover_every_keyframe_once(root):
    loader = ready(root).train_dataloader()
    assert sorted(torch.cat([batch.keyframes for batch in loader]).tolist()) == [0, 1, 2, 3]


def order(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader.sampler)


def test_order_is_a_function_of_seed_and_epoch(root):
    data = ready(root)
    orders = [order(data.train_dataloader(), epoch) for epoch in range(6)]
    assert orders == [order(data.train_dataloader(), epoch) for epoch in range(6)]
    assert len(set(map(tuple, orders))) > 1
    assert orders != [order(ready(root, seed=1).train_dataloader(), epoch) for epoch in range(6)]


class Recorder(lightning.LightningModule):
    """A model that learns nothing and remembers its clips."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen = {}

    def training_step(self, batch):
        for keyframe, clip in zip(batch.keyframes.tolist(), batch.clips):
            self.seen[self.current_epoch, keyframe] = clip
        return self.weight * 0

    def validation_step(self, batch):
        self.seen["val"] = batch

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fitted(root, folder, epochs, checkpoint=None, workers=0):
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    model = Recorder()
    trainer.fit(model, datamodule=module(root, num_workers=workers), ckpt_path=checkpoint)
    return trainer, model.seen


@pytest.mark.filterwarnings("ignore")
def test_trainer_advances_the_augmentation_and_resumes_it(root, tmp_path):
    _, seen = fitted(root, tmp_path / "whole", epochs=2, workers=1)
    assert len(seen["val"]) == 1
    assert any(not torch.equal(seen[0, index], seen[1, index]) for index in range(4))
    trainer, _ = fitted(root, tmp_path / "half", epochs=1)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed = fitted(root, tmp_path / "rest", epochs=2, checkpoint=tmp_path / "half.ckpt")
    for index in range(4):
        assert (0, index) not in resumed
        assert torch.equal(resumed[1, index], seen[1, index])


def test_ranks_share_the_keyframes(root):
    data = ready(root)
    parts = []
    for rank in (0, 1):
        data.trainer = type("Trainer", (), {"world_size": 2, "global_rank": rank, "current_epoch": 3})()
        loader = data.train_dataloader()
        parts.append(list(loader.sampler))
        assert loader.sampler.epoch == 3
    assert sorted(parts[0] + parts[1]) == [0, 1, 2, 3]


def test_validation_keeps_the_order_of_the_keyframes(root):
    loader = ready(root, val_csv="ava_train_v2.2.csv", batch_size=3).val_dataloader()
    assert [batch.keyframes.tolist() for batch in loader] == [[0, 1, 2], [3]]


def test_workers_are_kept_and_batches_padded_as_asked(root):
    data = ready(root, num_workers=1, pad_multiple=20, open_videos=3)
    assert data.val_dataset._readers.size == 3
    loader = data.val_dataloader()
    assert loader.persistent_workers
    assert next(iter(loader)).clips.shape[3:] == (40, 40)


@pytest.mark.parametrize("pattern", ["{}_%06d.png", "img_%05d.png"])
@pytest.mark.parametrize("listed", [False, True])
def test_extracted_frames_give_the_same_clips_as_videos(root, pattern, listed):
    expected = ready(root).val_dataset[0]
    for video in "abc":
        write_frames(root / "frames" / video, numbered_frames(5 * FPS), pattern.format(video))
    if listed:
        (root / "frame_lists").mkdir()
        for split in ("train", "val"):
            names = [(v, i, pattern.format(v) % (i + 1)) for v in "abc" for i in range(5 * FPS)]
            lines = [f'{video} 0 {number} {video}/{name} ""' for video, number, name in names]
            table = ["original_vido_id video_id frame_id path labels", *lines]
            (root / "frame_lists" / f"{split}.csv").write_text("\n".join(table))
    data = ready(root)
    assert isinstance(data.source("val")("c"), FrameReader)
    assert torch.equal(data.val_dataset[0].frames, expected.frames)
    assert torch.equal(data.val_dataset[0].target.boxes, expected.target.boxes)


def test_backend_is_a_setting(root):
    assert isinstance(ready(root, backend="pyav").source("val")("c"), PyAVReader)


def test_version_chooses_the_files(root):
    for path in (root / "annotations").iterdir():
        path.rename(path.with_name(path.name.replace("2.2", "2.1").replace("2019", "2018")))
    assert len(ready(root, version="2.1").train_dataset) == 4


def test_whole_movies_start_at_second_0(root):
    for name in ("train", "val"):
        path = root / f"annotations/ava_{name}_v2.2.csv"
        path.write_text(path.read_text().replace(",90", ","))
    settings = {"valid_seconds": None, "excluded_csv": None}
    data = ready(root, video_start_second=0, **settings)
    assert data.val_dataset.keyframes[0].position == 3 * FPS
    with pytest.raises(ValueError, match=r"train_v2\.2\.csv, line 1: video a, 2, .*the time is before 900, the start"):
        ready(root, **settings)


def test_classes_may_be_those_of_the_label_map(root):
    (root / "annotations/ava_train_v2.2.csv").write_text(TRAIN[1])
    with pytest.raises(ValueError, match=r"val_v2\.2\.csv, line 2: .*not among the 2 classes with ids 1 to 3: 2"):
        ready(root, num_classes=None, excluded_csv=None)
    (root / "annotations/ava_val_v2.2.csv").write_text(VAL[0])
    data = ready(root, num_classes=None)
    assert (data.num_classes, data.class_ids) == (2, [1, 3])
    assert data.train_dataset[0].target.labels.tolist() == [[0, 1]]


def test_metric_knows_keyframes_and_evaluated_classes(root):
    metric = ready(root).build_metric("activitynet_2018")
    one = torch.ones(1)
    people = Detections(torch.tensor([[0.0, 0.0, 20.0, 16.0]]), one, torch.eye(80)[:1], torch.tensor([32, 40]))
    metric.update(torch.tensor([0]), [people])
    result = metric.compute()
    assert result["mAP"] == result["AP/1"] == 1
    assert {key for key in result if key.startswith("AP/")} == {"AP/1", "AP/3"}


def test_missing_videos_are_listed_at_setup(root):
    for video in "ab":
        (root / f"videos/{video}.mp4").unlink()
    with pytest.raises(ValueError, match=r"2 of 2 train videos \(a, b\) are not in .*videos; add them"):
        ready(root)
    ready(root, "validate")


def test_missing_annotation_file_is_named(root):
    (root / "annotations/ava_val_v2.2.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"ava_val_v2\.2\.csv: no such annotation file"):
        ready(root)


def test_folder_without_pixels_is_an_error(root):
    (root / "videos").rename(root / "movies")
    with pytest.raises(FileNotFoundError, match="neither frames/ nor videos/"):
        ready(root)


def test_label_map_beyond_the_outputs_is_an_error(root):
    with pytest.raises(ValueError, match=r"has ids \[3\] beyond num_classes 2; raise it"):
        ready(root, num_classes=2)


def test_unknown_version_is_an_error(root):
    with pytest.raises(ValueError, match=r"version '3' is unknown; choose one of 2\.1, 2\.2"):
        module(root, version="3")


def test_sampler_without_a_clock_is_an_error(root):
    with pytest.raises(ValueError, match="give the sampler annotated_fps"):
        module(root, sampler=ClipSampler(4, 5))
