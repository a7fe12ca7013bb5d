"""A detector for use: one precision everywhere, single clips as in a batch."""

import numpy as np
import pytest
import torch

from evad import precision
from evad.data.clips.collate import PaddingCollate
from evad.data.clips.sampling import ClipSampler
from evad.data.clips.transforms import VideoTransform
from evad.detector import Detector
from evad.models.postprocess import PostProcess
from evad.precision import autocast, precision_name, prepare
from evad.structures import Clip, Target


class Reader:
    """Noise of 20 frames of 40 x 60 pixels."""

    num_frames, fps, times, height, width = 20, 8.0, None, 40, 60

    def read(self, indices):
        noise = np.random.default_rng(0).integers(0, 256, (self.num_frames, 40, 60, 3), dtype=np.uint8)
        return noise[indices]


@pytest.fixture
def detector(tiny_model):
    model = tiny_model(dtype=torch.float32).eval()
    everything = PostProcess("person_times_action", person_threshold=0.0, keep_all_if_none=False)
    names = {str(number): f"class {number}" for number in range(1, 6)}
    return Detector(model, ClipSampler(8, 2), VideoTransform(32), everything, PaddingCollate(16), names)


@pytest.mark.parametrize(
    ("wanted", "dtype"), [("32-true", None), ("bf16-mixed", torch.bfloat16), ("16", torch.float16)]
)
def test_the_network_runs_in_the_precision_asked_for(detector, wanted, dtype):
    seen = []

    def note(*_):
        seen.append(torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None)

    detector.model.encoder.register_forward_pre_hook(note)
    detector.precision = wanted
    detector.detect([detector.read_clip(Reader(), 9)])
    assert seen == [dtype]


def test_a_clip_is_detected_alone_as_in_a_batch(detector):
    clips = [detector.read_clip(Reader(), frame) for frame in (0, 9)]
    assert [clip.frames.shape for clip in clips] == [(3, 8, 32, 48)] * 2
    together = detector.detect(clips)
    for clip, found in zip(clips, together):
        (alone,) = detector.detect([clip])
        assert len(alone.boxes)
        torch.testing.assert_close(alone.boxes, found.boxes, atol=1e-3, rtol=1e-5)
        torch.testing.assert_close(alone.action_scores, found.action_scores, atol=1e-5, rtol=1e-4)


def test_boxes_are_pixels_of_the_video(detector):
    empty = Target(torch.zeros(0, 4), torch.zeros(0, 5))
    clip = Clip(torch.zeros(3, 8, 32, 48), empty, torch.tensor(0), torch.tensor([320, 480]))
    (found,) = detector.detect([clip])
    assert found.boxes.max() > 48
    assert (found.boxes <= torch.tensor([480, 320, 480, 320])).all()


def test_names_of_precisions():
    assert [precision_name(name) for name in (32, "32", "bf16", "16-mixed")] == [
        "32-true",
        "32-true",
        "bf16-mixed",
        "16-mixed",
    ]
    with pytest.raises(ValueError, match="precision 64-true is only for training: choose one of 32-true, bf16-mixed"):
        autocast("64-true", "cpu")


def test_a_process_is_prepared_for_its_device(monkeypatch, caplog):
    kept = []
    monkeypatch.setattr(precision, "keep_freed_memory", lambda: kept.append(True))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    before = torch.get_float32_matmul_precision()
    try:
        prepare(torch.device("cpu"), "bf16-mixed", "high")
        assert torch.get_float32_matmul_precision() == "high"
        assert "use precision 32-true here" in caplog.text
        prepare(torch.device("meta"), "bf16-mixed", "highest")
        assert torch.get_float32_matmul_precision() == "highest"
        assert kept == [True]
    finally:
        torch.set_float32_matmul_precision(before)
