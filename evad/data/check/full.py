"""The complete check of a data set: annotations, videos and frames."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evad.data.annotations.classes import UNKNOWN
from evad.data.annotations.keyframes import SPLITS, Annotations, VideoInfo
from evad.data.annotations.soundness import annotation_findings, class_counts
from evad.data.annotations.videos import READ_ERRORS, frame_count_findings, undecodable, video_findings
from evad.data.check.frames import VideoCheck, VideoJob, VideoReport, read_videos, swapped_finding
from evad.data.check.proposals import proposal_findings
from evad.data.check.quick import look_for_videos, sources, unreadable
from evad.data.check.report import ClassSummary, Example, Report, SplitSummary
from evad.data.clips.ava import AVADataModule
from evad.data.clips.datamodule import ActionDataModule
from evad.files.csv_rows import BOX

EXAMPLES = 24  # pictures in examples.png
AVA_START = 900.0  # second at which AVA's cuts begin


def full_check(datamodule: ActionDataModule) -> tuple[Report, list[Example]]:
    """Run all checks on a data set; also returns keyframes to look at."""
    root = str(getattr(datamodule, "root", type(datamodule).__name__))
    try:
        datamodule.prepare_data()
        annotations = datamodule.scan()
        opened = sources(datamodule, annotations)
        findings, gone = look_for_videos(annotations, opened)
    except READ_ERRORS as error:
        return Report(root, {}, [], [unreadable(error)]), []
    findings = annotation_findings(annotations) + proposal_findings(datamodule, annotations) + findings
    pixels = annotations.boxes == "pixels"
    check = VideoCheck(_jobs(annotations, gone), opened, datamodule.sampler, annotations.clock, pixels)
    reports = read_videos(check, datamodule.num_workers)
    infos = {report.job.video: report.info for report in reports if report.info is not None}
    findings += undecodable([report.failure for report in reports if report.failure])
    findings += video_findings(annotations, infos)
    if not any(finding.kind.startswith("box") and finding.severity == "error" for finding in findings):
        findings += swapped_finding(reports)
    if isinstance(datamodule, AVADataModule) and datamodule.video_start_second == AVA_START:
        findings += frame_count_findings(infos)
    report = Report(root, _split_summaries(annotations), _class_summaries(annotations), findings)
    return report, _examples(annotations, check, reports, infos)


def _jobs(annotations: Annotations, gone: set[str]) -> list[VideoJob]:
    jobs = []
    rows = annotations.rows
    rows = rows[rows["valid"] & rows["split"].isin(SPLITS) & ~rows["video"].isin(gone)]
    for (split, video), lines in rows.groupby(["split", "video"], sort=False):
        instants = list(lines.groupby("time"))
        boxes = [people.loc[~people["empty"], BOX].drop_duplicates().to_numpy() for _, people in instants]
        jobs.append(VideoJob(str(split), str(video), np.array([time for time, _ in instants], np.float64), boxes))
    return jobs


def _split_summaries(annotations: Annotations) -> dict[str, SplitSummary]:
    summaries: dict[str, SplitSummary] = {}
    for split in SPLITS:
        rows = annotations.of(split)
        people = rows[~rows["empty"]]
        summaries[split] = SplitSummary(
            videos=rows["video"].nunique(),
            keyframes=len(rows.drop_duplicates(["video", "time"])),
            boxes=len(people.drop_duplicates(["video", "time", *BOX, "actor"])),
            labels=int((people["class_id"] != UNKNOWN).sum()),
        )
    return summaries


def _class_summaries(annotations: Annotations) -> list[ClassSummary]:
    counts = class_counts(annotations)
    shown = counts[counts.index.isin(annotations.evaluated)]
    return [
        ClassSummary(int(number), annotations.classes[int(number)], int(train), int(val))
        for number, train, val in shown[list(SPLITS)].itertuples()
    ]


def _examples(
    annotations: Annotations, check: VideoCheck, reports: list[VideoReport], infos: Mapping[str, VideoInfo]
) -> list[Example]:
    """Keyframes spread evenly over the videos that could be read."""
    good = [report for report in reports if not report.failure and len(report.job.times)]
    rounds = -(-EXAMPLES // max(len(good), 1))
    picked = []
    for place in np.unique(np.linspace(0, len(good) - 1, min(EXAMPLES, len(good))).round().astype(int)):
        job = good[place].job
        chosen = np.unique(np.linspace(0, len(job.times) - 1, min(rounds, len(job.times))).round().astype(int))
        picked += [(job, float(job.times[index])) for index in chosen]
    shown = [_example(annotations, check, job, time, infos[job.video]) for job, time in picked[:EXAMPLES]]
    return [example for example in shown if example is not None]


def _example(
    annotations: Annotations, check: VideoCheck, job: VideoJob, time: float, info: VideoInfo
) -> Example | None:
    """The keyframe of a video at a time; None if the video has no frame at that time."""
    try:
        reader = check.open_readers[job.split](job.video)
        clip = check.clip(time, job, reader)
        if not len(clip):
            return None
        image = reader.read([clip[len(clip) // 2]])[0]
    except READ_ERRORS:
        return None
    rows = annotations.of(job.split)
    people = rows[(rows["video"] == job.video) & (rows["time"] == time) & ~rows["empty"] & rows["valid"]]
    scale = np.array([info.width, info.height] * 2) if annotations.boxes == "pixels" else np.ones(4)
    actors = list(people.groupby(BOX, sort=False))
    boxes = np.array([box for box, _ in actors], dtype=np.float64).reshape(-1, 4) / scale
    texts = ["\n".join(_name(row, annotations) for row in lines.itertuples()) for _, lines in actors]
    return Example(f"{job.split}: {job.video}, {time:g}", image, boxes, texts)


def _name(row, annotations: Annotations) -> str:  # type: ignore[no-untyped-def]  # a named tuple of pandas
    return annotations.classes.get(row.class_id, f"{row.label} (unknown)")
