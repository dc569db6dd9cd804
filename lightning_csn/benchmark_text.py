"""What `lightning-csn benchmark data` found, as a person reads it: a table for each task, and where our time goes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lightning_csn.benchmark_videos import MADE
from lightning_csn.terminal import table


def as_text(result: dict[str, Any]) -> str:
    """A result as a person reads it."""
    settings, where, videos = result["settings"], result["machine"], result["videos"]
    names = [f"{name} {where[name]}" for name in ("av", "decord", "torchcodec", "torch") if where[name]]
    clip = "x".join(map(str, settings["clip"]))
    lines = [
        f"clips {clip}, one thread, medians of {settings['repeats'] * len(videos)}",
        f"{where['device']}, {where['cores']} cores, {', '.join(names)}",
        *map(video_text, videos[:3]),
    ]
    if result["made"]:
        lines.append(f"the video was made for this: {MADE}")
    if len(videos) > 3:
        lines.append(f"and {len(videos) - 3} more videos")
    lines += [f"{name}: {reason}" for name, reason in result["absent"].items()]
    for task, title in (
        ("random_clip", "one clip at a random place, opened and read"),
        ("spread_clips", f"{settings['clips']} clips spread over a video, opened and read in one pass"),
    ):
        lines += ["", title, "", *task_text(result[task])] if task in result else []
    lines += ["", *shares_text(result["shares"])] if "shares" in result else []
    lines.append("")
    for name, speed in result["dataset"].items():
        lines.append(
            f"reading and cutting to {speed['crop']}x{speed['crop']}, {name}: "
            f"{speed['clips_per_second_per_core']:.1f} clips/s per core, {speed['workers']} workers' worth "
            f"({speed['clips_per_cpu_second']:.1f} per second of processor time, {speed['cores']} cores)"
        )
    if result["not_measured"]:
        lines.append(f"stopped; not measured: {'; '.join(result['not_measured'])}")
    return "\n".join(lines)


def video_text(video: dict[str, Any]) -> str:
    """A video in a line."""
    fps = "" if video["fps"] is None else f" at {video['fps']:.4g} fps"
    frames = f"{video['frames']} frames{fps}, {video['keyframes']} keyframes"
    name = Path(video["path"]).name
    return f"{name}: {video['codec']}, {video['width']}x{video['height']}, {frames}, {video['bytes'] / 1e6:.2f} MB"


def task_text(task: dict[str, Any]) -> list[str]:
    """The table of a task, and its ratios."""
    rows = [("WAY", "MS", "CPU MS", "READINGS/S", "DIFFERENCE")]
    for each in task["ways"]:
        if each["error"] is not None:
            rows.append((each["name"], "-", "-", "-", each["error"]))
            continue
        away = f"{each['difference']:.2f}" + ("" if each["agrees"] else ", other frames: not compared")
        rows.append((each["name"], f"{each['ms']:.1f}", f"{each['cpu_ms']:.1f}", f"{1e3 / each['ms']:.1f}", away))
    lines = [table(rows), ""]
    for name, ratio in task["ratios"].items():
        lines.append(
            f"{name}: {ratio['speed']:.2f} times as fast as the fastest of the peers, {ratio['against']}; "
            f"by processor time {ratio['cpu_speed']:.2f} times ({ratio['cpu_against']})"
        )
    return lines if task["ratios"] else [*lines, "no peer gave the same frames: no ratio"]


def shares_text(shares: dict[str, Any]) -> list[str]:
    """Where our time goes."""
    parts, frames = shares["ms"], shares["frames"]
    total = math.fsum(parts.values())
    text = ", ".join(f"{name} {value:.1f} ms ({value / total:.0%})" for name, value in parts.items())
    lines = [f"a random clip of ours: {text}"]
    if frames["needed"]:
        lines.append(
            f"frames a clip: {frames['asked_for']:.0f} asked for, {frames['needed']:.1f} must be decoded "
            f"(these, and what they may refer to), {frames['decoded']:.1f} came out of the decoder, "
            f"{frames['from_keyframe']:.1f} lie between the keyframe and the last"
        )
    return lines
