"""Readers: exact frames from files and folders, whatever the container, the order of reading and the frame rate."""

import os
import pickle
import signal
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from media import HEIGHT, WIDTH, numbered_frames, write_frames, write_video
from torchvision.io import write_jpeg

from evad.data.video.errors import VideoError
from evad.data.video.images import FrameReader, NumberedFrames, compact_paths, list_frames
from evad.data.video.readers import DecordReader, PyAVReader, _timeline, open_video
from evad.data.video.sources import FrameFolders, ReaderCache, VideoFiles

MEDIA = Path(__file__).parents[2] / "shared" / "media"
B_FRAMES = "b-adapt=0:bframes=3:keyint=12:min-keyint=2:scenecut=0"
READERS = [DecordReader, PyAVReader]


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("fps", [6, 25, 30])
def test_reader_knows_length_rate_and_size(tmp_path, reader, fps):
    video = reader(write_video(tmp_path / "v.mp4", numbered_frames(20), fps))
    assert (video.num_frames, video.fps, video.height, video.width) == (20, fps, HEIGHT, WIDTH)


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize(
    ("name", "x264"),
    [
        ("plain.mp4", "bframes=0:keyint=12"),
        ("reordered.mp4", B_FRAMES),
        ("open_gop.mp4", B_FRAMES + ":open-gop=1"),
        ("short_gop.mp4", "b-adapt=0:bframes=3:keyint=3:min-keyint=1"),
        ("reordered.mkv", B_FRAMES),
    ],
)
def test_random_access_is_exact(tmp_path, reader, name, x264):
    truth = numbered_frames(50)
    video = reader(write_video(tmp_path / name, truth, 25, x264))
    rng = np.random.default_rng(0)
    for _ in range(20):
        indices = rng.integers(0, 50, 6)
        np.testing.assert_array_equal(video.read(indices), truth[indices])


@pytest.mark.parametrize("x264", ["bframes=0:keyint=12", B_FRAMES])
def test_avi_is_exact_although_it_has_no_presentation_times(tmp_path, x264):
    truth = numbered_frames(50)
    video = open_video(write_video(tmp_path / "v.avi", truth, 25, x264))
    for indices in ([30, 2, 49], [0], [31, 31], list(range(50))):
        np.testing.assert_array_equal(video.read(indices), truth[indices])


@pytest.mark.parametrize("name", ["v.mp4", "v.avi"])
def test_auto_is_pyav(tmp_path, name):
    assert isinstance(open_video(write_video(tmp_path / name, numbered_frames(3))), PyAVReader)


def test_auto_falls_back_to_decord_where_pyav_fails(tmp_path, monkeypatch):
    truth = numbered_frames(3)
    path = write_video(tmp_path / "v.mp4", truth)

    def refuse(*_):
        raise av.error.InvalidDataError(1, "no")

    monkeypatch.setattr("evad.data.video.readers._timeline", refuse)
    assert isinstance(open_video(path), DecordReader)
    np.testing.assert_array_equal(open_video(path).read([2, 0]), truth[[2, 0]])


def test_without_decord_everything_but_its_backend_works(tmp_path, monkeypatch):
    truth = numbered_frames(3)
    path = write_video(tmp_path / "v.mp4", truth)
    monkeypatch.setattr("evad.data.video.readers.decord", None)
    np.testing.assert_array_equal(open_video(path).read([2, 0]), truth[[2, 0]])
    with pytest.raises(VideoError, match=r"v\.mp4: decord is not installed; install it or use backend=pyav"):
        open_video(path, "decord")


@pytest.mark.parametrize("width", [16, 48])
def test_narrow_videos_are_read(tmp_path, width):
    """decord 0.6 opens them and fails in `get_batch` only, as it aligns rows to 32 pixels."""
    truth = numbered_frames(6, 32, width)
    path = write_video(tmp_path / "v.mp4", truth)
    np.testing.assert_array_equal(open_video(path).read([5, 0]), truth[[5, 0]])
    with pytest.raises(VideoError, match=r"v\.mp4: decord cannot read the video"):
        open_video(path, "decord")


@pytest.mark.parametrize("reader", READERS)
def test_repeated_and_unordered_indices_are_kept(tmp_path, reader):
    truth = numbered_frames(30)
    video = reader(write_video(tmp_path / "v.mp4", truth, x264=B_FRAMES))
    indices = [29, 0, 0, 17, 5, 17, 29]
    np.testing.assert_array_equal(video.read(indices), truth[indices])
    assert video.read(np.array([3])).flags["C_CONTIGUOUS"]


def test_edited_video_starts_at_its_first_shown_frame(tmp_path):
    truth, hidden = numbered_frames(40), 5
    path = tmp_path / "edited.mp4"
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream("libx264rgb", rate=25, options={"qp": "0", "x264-params": B_FRAMES})
        stream.height, stream.width, stream.pix_fmt = HEIGHT, WIDTH, "rgb24"
        packets = [p for f in truth for p in stream.encode(av.VideoFrame.from_ndarray(f, format="rgb24"))]
        for packet in [*packets, *stream.encode()]:
            packet.pts, packet.dts = packet.pts - hidden, packet.dts - hidden
            container.mux(packet)
    video = open_video(path)
    assert video.num_frames == 35
    np.testing.assert_array_equal(video.read([34, *range(35)]), truth[[39, *range(hidden, 40)]])
    for index in (30, 3, 20):
        np.testing.assert_array_equal(open_video(path).read([index]), truth[[hidden + index]])
    with pytest.raises(VideoError, match="decord miscounts the hidden frames"):  # wrong after every seek
        DecordReader(path)


@pytest.mark.parametrize("rotation", [90, 180, -90])
def test_rotated_video_is_read_upright(tmp_path, rotation):
    truth = numbered_frames(4)
    path = write_video(tmp_path / "phone.mp4", truth, rotation=rotation)
    upright = np.rot90(truth, rotation // 90, axes=(1, 2))  # the angle is counterclockwise, as np.rot90's
    for reader in READERS:
        video = reader(path)
        assert (video.height, video.width) == upright.shape[1:3]
        np.testing.assert_array_equal(video.read([3, 1]), upright[[3, 1]])


@pytest.mark.parametrize("name", ["people_25fps.avi", "people_6fps.mp4", "people_arm_wrestling.mp4"])
def test_backends_agree_on_real_videos(name):
    if not (MEDIA / name).is_file():
        pytest.skip(f"{MEDIA / name} is not part of the repository")
    decord, pyav = DecordReader(MEDIA / name), PyAVReader(MEDIA / name)
    assert (decord.num_frames, decord.fps, decord.height) == (pyav.num_frames, pyav.fps, pyav.height)
    indices = np.random.default_rng(0).integers(0, decord.num_frames, 12)
    np.testing.assert_array_equal(decord.read(indices), pyav.read(indices))


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("index", [-1, 20])
def test_index_outside_the_video_is_an_error(tmp_path, reader, index):
    video = reader(write_video(tmp_path / "v.mp4", numbered_frames(20)))
    with pytest.raises(IndexError, match=rf"v\.mp4: frame {index} is outside the video, which has frames 0 to 19"):
        video.read([0, index])


def test_reading_no_frames_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="non-empty list"):
        open_video(write_video(tmp_path / "v.mp4", numbered_frames(2))).read([])


def test_missing_video_file_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.mp4: no such video file; check"):
        open_video(tmp_path / "nothing.mp4")


def test_empty_video_file_is_an_error(tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4: the video file is empty .* re-encode"):
        open_video(tmp_path / "empty.mp4")


@pytest.mark.parametrize("backend", ["auto", "decord", "pyav"])
def test_unreadable_video_names_file_reason_and_remedy(tmp_path, backend):
    (tmp_path / "noise.mp4").write_bytes(bytes(range(256)) * 20)
    with pytest.raises(
        VideoError, match=r"noise\.mp4: (decord|PyAV) cannot read the video \(.+\); .*re-encode it"
    ) as error:
        open_video(tmp_path / "noise.mp4", backend)
    text = str(error.value)
    assert text.count("noise.mp4: ") == text.count("re-encode it") == 1
    assert ("PyAV cannot" in text, "decord cannot" in text) == (backend != "decord", backend != "pyav")


@pytest.mark.parametrize("reader", READERS)
def test_truncated_video_is_an_error(tmp_path, reader):
    path = write_video(tmp_path / "cut.mp4", numbered_frames(30))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(VideoError, match=r"cut\.mp4"):
        reader(path)


def test_unknown_backend_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="backend 'opencv' is unknown; choose one of auto, decord, pyav"):
        open_video(write_video(tmp_path / "v.mp4", numbered_frames(2)), "opencv")


@pytest.mark.parametrize("pattern", ["abc_%06d.png", "img_%05d.png", "%05d.png", "abc_%d.png"])
def test_frame_folder_is_ordered_by_number(tmp_path, pattern):
    truth = numbered_frames(12)
    write_frames(tmp_path / "abc", truth, pattern)
    video = FrameFolders(tmp_path, fps=30)("abc")
    assert (video.num_frames, video.fps, video.height, video.width) == (12, 30, HEIGHT, WIDTH)
    np.testing.assert_array_equal(video.read([11, 0, 3, 3]), truth[[11, 0, 3, 3]])


def test_frames_follow_a_frame_list(tmp_path):
    truth = numbered_frames(3)
    folder = write_frames(tmp_path, truth, "%d.png")
    lists = {"abc": [str(folder / name) for name in ("3.png", "1.png", "2.png")]}
    np.testing.assert_array_equal(FrameFolders(tmp_path, 30, lists)("abc").read([0, 1, 2]), truth[[2, 0, 1]])


def test_jpeg_frames_are_rgb(tmp_path):
    (tmp_path / "v").mkdir()
    red = torch.zeros(3, HEIGHT, WIDTH, dtype=torch.uint8)
    red[0] = 255
    write_jpeg(red, str(tmp_path / "v" / "v_000001.jpg"))
    frame = FrameFolders(tmp_path, fps=30)("v").read([0])
    assert np.abs(frame[0].astype(int) - np.array([255, 0, 0])).max() <= 2


def test_missing_frame_image_names_its_path(tmp_path):
    folder = write_frames(tmp_path / "v", numbered_frames(5), "v_%06d.png")
    (folder / "v_000003.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"v: frame 3 is missing \(v_000002\.png is followed by v_000004"):
        FrameFolders(tmp_path, fps=30)("v")
    reader = FrameReader([str(folder / f"v_{number:06d}.png") for number in range(1, 6)], 30, "v")
    with pytest.raises(FileNotFoundError, match=r"v_000003\.png: frame 2 of v is missing"):
        reader.read([1, 2])


def test_unreadable_frame_image_names_its_path(tmp_path):
    folder = write_frames(tmp_path / "v", numbered_frames(2), "%d.png")
    (folder / "2.png").write_bytes(b"no image")
    with pytest.raises(VideoError, match=r"2\.png: the image cannot be read"):
        FrameFolders(tmp_path, fps=30)("v").read([1])


def test_frames_of_different_sizes_are_an_error(tmp_path):
    write_frames(tmp_path / "v", [*numbered_frames(1), *numbered_frames(1, 8, 10)], "%d.png")
    with pytest.raises(VideoError, match=r"2\.png: the frame has 10x8 pixels, but the first frame of v has 40x32"):
        FrameFolders(tmp_path, fps=30)("v").read([0, 1])


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        ([], "no .* images"),
        (["cover.jpg"], "does not end in a frame number"),
        (["1.jpg", "01.jpg"], "same frame number"),
    ],
)
def test_folder_that_is_no_list_of_frames_is_an_error(tmp_path, names, problem):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(VideoError, match=problem):
        list_frames(str(tmp_path))


def test_video_without_folder_or_list_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="v: no such folder of frames"):
        FrameFolders(tmp_path, 30)("v")
    with pytest.raises(FileNotFoundError, match="'v' is not in the frame lists"):
        FrameFolders(tmp_path, 30, {})("v")
    with pytest.raises(VideoError, match="v: the video has no frames"):
        FrameFolders(tmp_path, 30, {"v": []})("v")


def test_numbered_paths_are_stored_as_a_pattern():
    paths = [f"root/v1/v1_{number:06d}.jpg" for number in range(7, 20)]
    compact = compact_paths(paths)
    assert compact == NumberedFrames("root/v1/v1_", 6, ".jpg", 7, 13)
    assert list(compact) == paths
    assert compact[2:4] == paths[2:4]
    assert compact[-1] == paths[-1]
    with pytest.raises(IndexError):
        compact[13]


@pytest.mark.parametrize("paths", [[], ["a/1.jpg", "a/3.jpg"], ["a/1.jpg", "b/2.jpg"], ["a/cover.jpg"]])
def test_other_paths_are_kept_as_they_are(paths):
    assert compact_paths(paths) == tuple(paths)


def test_video_files_are_found_by_name(tmp_path):
    truth = numbered_frames(3)
    for name in ("a.mp4", "class x/b.c.mkv", "d.AVI"):
        write_video(tmp_path / name, truth)
    (tmp_path / "notes.txt").touch()
    files = VideoFiles(tmp_path)
    assert sorted(files.paths) == ["a", "class x/b.c", "d"]
    np.testing.assert_array_equal(files("class x/b.c").read([2]), truth[2:])
    assert files.missing(["a", "e", "d", "f"]) == ["e", "f"]
    with pytest.raises(FileNotFoundError, match="video 'e' has no file in"):
        files("e")


def test_two_files_of_one_video_are_an_error(tmp_path):
    for name in ("a.mp4", "a.mkv"):
        write_video(tmp_path / name, numbered_frames(1))
    with pytest.raises(ValueError, match=r"a\.mkv and .*a\.mp4 are both video 'a'; keep one"):
        VideoFiles(tmp_path)


def test_missing_frame_folders_are_listed(tmp_path):
    write_frames(tmp_path / "a", numbered_frames(1), "%d.png")
    assert FrameFolders(tmp_path, 30).missing(["a", "b"]) == ["b"]
    assert FrameFolders(tmp_path, 30, {"b": ["x"]}).missing(["a", "b"]) == ["a"]


def test_cache_keeps_the_last_used_readers_and_travels_empty(tmp_path):
    for name in "abc":
        write_video(tmp_path / f"{name}.mp4", numbered_frames(2))
    opened = []
    files = VideoFiles(tmp_path)
    cache = ReaderCache(lambda video: opened.append(video) or files(video), size=2)
    for video in "abacab":
        cache(video)
    assert opened == ["a", "b", "c", "b"]
    travelled = pickle.loads(pickle.dumps(ReaderCache(files, size=2)))
    assert travelled("a").num_frames == 2
    with pytest.raises(ValueError, match=r"data\.open_videos is 0; it must be 1 or more"):
        ReaderCache(files, size=0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_forked_workers_inherit_the_timelines_their_parent_scanned(tmp_path):
    path = write_video(tmp_path / "v.mp4", numbered_frames(8))
    PyAVReader(path)
    misses = _timeline.cache_info().misses
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        PyAVReader(path)
        os._exit(_timeline.cache_info().misses - misses)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("backend", ["decord", "pyav"])
def test_forked_process_opens_its_own_readers(tmp_path, backend):
    truth = numbered_frames(8)
    write_video(tmp_path / "v.mp4", truth)
    cache = ReaderCache(VideoFiles(tmp_path, backend), size=8)
    cache("v").read([5])
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # using or releasing the parent's decoder waits for ever
        os._exit(0 if np.array_equal(cache("v").read([2, 7]), truth[[2, 7]]) else 1)
    assert os.waitpid(child, 0)[1] == 0
