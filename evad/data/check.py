"""Whether a data set is what the settings say it is, before hours of training tell.

    python -m evad.data.check data=custom data.root=my_videos
    python -m evad.data.check data=ava paths.data=/data

Reads every annotation and every frame that training would, with `data.num_workers` processes, and prints a report. The
output folder gets `report.json` and `examples.png`: keyframes with their boxes, to look at. Ends with exit code 1 if
training would be wrong. `evad.data.quick_check` is the part that needs no frames.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from omegaconf.errors import InterpolationResolutionError
from rich.console import Console

from evad.build import build_datamodule
from evad.data.annotation_table import BOX
from evad.data.annotations import UNKNOWN, Annotations, VideoInfo
from evad.data.check_annotations import SPLITS, annotation_findings, class_counts
from evad.data.check_proposals import proposal_findings
from evad.data.check_report import ClassSummary, Example, Report, SplitSummary, draw_sheet, print_report, write_json
from evad.data.check_scan import scan, sources
from evad.data.check_videos import (
    READ_ERRORS,
    VideoCheck,
    VideoJob,
    VideoReport,
    frame_count_findings,
    read_videos,
    swapped_finding,
    undecodable,
    video_findings,
)
from evad.data.datamodule import ActionDataModule, AVADataModule
from evad.data.quick_check import look_for_videos, unreadable
from evad.runs import hydra_command

log = logging.getLogger(__name__)

EXAMPLES = 24  # pictures on the sheet
AVA_START = 900.0  # second at which AVA's cuts begin


def full_check(datamodule: ActionDataModule) -> tuple[Report, list[Example]]:
    """Everything that can be found out about a data set, and keyframes to look at.

    Args:
        datamodule: Any data module of this package.
    """
    root = str(getattr(datamodule, "root", type(datamodule).__name__))
    try:
        datamodule.prepare_data()
        annotations = scan(datamodule)
        opened = sources(datamodule, annotations)
        findings, gone = look_for_videos(annotations, opened)
    except (ValueError, OSError) as error:
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
    """One job per split and video that is there."""
    jobs = []
    rows = annotations.rows
    rows = rows[rows["valid"] & rows["split"].isin(SPLITS) & ~rows["video"].isin(gone)]
    for (split, video), lines in rows.groupby(["split", "video"], sort=False):
        instants = list(lines.groupby("time"))
        boxes = [people.loc[~people["nobody"], BOX].drop_duplicates().to_numpy() for _, people in instants]
        jobs.append(VideoJob(str(split), str(video), np.array([time for time, _ in instants], np.float64), boxes))
    return jobs


def _split_summaries(annotations: Annotations) -> dict[str, SplitSummary]:
    summaries = {}
    for split in SPLITS:
        rows = annotations.of(split)
        people = rows[~rows["nobody"]]
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
    """Keyframes spread evenly over the videos that could be read, one or more of each."""
    good = [report for report in reports if not report.failure and len(report.job.times)]
    rounds = -(-EXAMPLES // max(len(good), 1))
    picked = []
    for place in np.unique(np.linspace(0, len(good) - 1, min(EXAMPLES, len(good))).round().astype(int)) if good else []:
        job = good[place].job
        chosen = np.unique(np.linspace(0, len(job.times) - 1, min(rounds, len(job.times))).round().astype(int))
        picked += [(job, float(job.times[index])) for index in chosen]
    shown = [_example(annotations, check, job, time, infos[job.video]) for job, time in picked[:EXAMPLES]]
    return [example for example in shown if example is not None]


def _example(
    annotations: Annotations, check: VideoCheck, job: VideoJob, time: float, info: VideoInfo
) -> Example | None:
    """The keyframe of a video at a time; None if the video has no frame there."""
    try:
        reader = check.open_readers[job.split](job.video)
        clip = check.clip(time, job, reader)
        if not len(clip):
            return None
        image = reader.read([clip[len(clip) // 2]])[0]
    except READ_ERRORS:
        return None
    rows = annotations.of(job.split)
    people = rows[(rows["video"] == job.video) & (rows["time"] == time) & ~rows["nobody"] & rows["valid"]]
    scale = np.array([info.width, info.height] * 2) if annotations.boxes == "pixels" else np.ones(4)
    actors = list(people.groupby(BOX, sort=False))
    boxes = np.array([box for box, _ in actors], dtype=np.float64).reshape(-1, 4) / scale
    texts = ["\n".join(_name(row, annotations) for row in lines.itertuples()) for _, lines in actors]
    return Example(f"{job.split}: {job.video}, {time:g}", image, boxes, texts)


def _name(row, annotations: Annotations) -> str:  # type: ignore[no-untyped-def]  # a named tuple of pandas
    return annotations.classes.get(row.class_id, f"{row.label} (unknown)")


def check(cfg: DictConfig) -> bool:
    """Check the data set of a configuration; True if it is sound."""
    output = Path(HydraConfig.get().runtime.output_dir)
    try:
        datamodule = build_datamodule(cfg)
    except (InterpolationResolutionError, InstantiationException, ValueError, OSError) as error:
        report = Report(str(cfg.data.root), {}, [], [unreadable(error)])
        examples: list[Example] = []
    else:
        report, examples = full_check(datamodule)  # type: ignore[arg-type]
    print_report(report, Console())
    write_json(report, output / "report.json")
    if examples:
        draw_sheet(examples, output / "examples.png")
    log.info("report.json%s in %s", " and examples.png" if examples else "", output)
    return report.sound


def main() -> None:
    """Command line; the output goes to outputs/check unless hydra.run.dir says otherwise."""
    if not any(argument.startswith("hydra.run.dir=") for argument in sys.argv):
        sys.argv.append("hydra.run.dir='outputs/check/${now:%Y-%m-%d_%H-%M-%S}'")
    verdicts: list[bool] = []

    def run(cfg: DictConfig) -> None:
        verdicts.append(check(cfg))  # Hydra drops what a job returns

    hydra_command(run)
    sys.exit(0 if all(verdicts) else 1)


if __name__ == "__main__":
    main()
