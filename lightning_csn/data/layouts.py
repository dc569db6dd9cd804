"""The ways in which data sets lie on disk and their lists are written: one row of LAYOUTS for each.

A layout looks for its files (`detect`), reads them into tables of rows (`read`), and knows nothing of the others; what
rows have in common - where the videos are, which number a label has - is for annotations.py. The next layout is a row.

Which of them a folder or a list is, is decided by its names and its text alone: no video is opened.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

from lightning_csn.data.class_folders import detect_folders, read_folders
from lightning_csn.data.list_sources import Files, Source
from lightning_csn.data.list_tables import Table
from lightning_csn.data.official_lists import (
    detect_20bn,
    detect_activitynet,
    detect_hmdb51,
    detect_kinetics,
    detect_moments,
    detect_something_v2,
    detect_ucf101,
    read_20bn,
    read_activitynet,
    read_hmdb51,
    read_kinetics,
    read_moments,
    read_something_v2,
    read_ucf101,
)
from lightning_csn.data.plain_lists import detect_lists, read_lists
from lightning_csn.data.record_lists import detect_csv, detect_json, read_csv, read_json_list


@dataclass(frozen=True)
class Layout:
    """One way that data sets lie on disk.

    title: as a log calls it. looks_for: the files and names that it wants, for whoever has none of them.
    detect: the files of each split; none where this is another layout. read: these files as a table for each split.
    chosen: whether it is only taken by name, for it is another reading of what a layout above it takes.
    folds: whether there are several official splits. official: whether the lists are those of a data set's makers.
    """

    title: str
    looks_for: str
    detect: Callable[[Source], Files]
    read: Callable[[Source, Files], dict[str, Table]]
    chosen: bool = False
    folds: bool = False
    official: bool = False


def _list_layout(title: str, looks_for: str, layout: str) -> Layout:
    detect = functools.partial(detect_lists, layout=layout)
    return Layout(title, looks_for, detect, functools.partial(read_lists, layout=layout))


LAYOUTS: dict[str, Layout] = {
    "ucf101": Layout(
        "UCF101",
        "classInd.txt, trainlist01.txt, testlist01.txt",
        detect_ucf101,
        read_ucf101,
        folds=True,
        official=True,
    ),
    "hmdb51": Layout(
        "HMDB51",
        "CLASS_test_split1.txt for every class, with lines of a video and 0, 1 or 2",
        detect_hmdb51,
        read_hmdb51,
        folds=True,
        official=True,
    ),
    "kinetics": Layout(
        "Kinetics",
        "train.csv, val.csv, test.csv with label,youtube_id,time_start,time_end,split; videos ID_000010_000020.mp4 or "
        "ID.mp4",
        detect_kinetics,
        read_kinetics,
        official=True,
    ),
    "kinetics-untrimmed": Layout(
        "Kinetics, whole films",
        "the same csv files; of a video ID.mp4 the part from time_start to time_end is taken",
        detect_kinetics,
        functools.partial(read_kinetics, trimmed=False),
        chosen=True,
        official=True,
    ),
    "something-v2": Layout(
        "Something-Something v2",
        "*train.json, *validation.json with id and template, *labels.json",
        detect_something_v2,
        read_something_v2,
        official=True,
    ),
    "20bn": Layout(
        "Jester or Something-Something v1",
        "*-train.csv, *-validation.csv with id;label, *-labels.csv; videos are folders of pictures called by their id",
        detect_20bn,
        read_20bn,
        official=True,
    ),
    "moments": Layout(
        "Moments in Time",
        "trainingSet.csv, validationSet.csv with path,label,…; moments_categories.txt",
        detect_moments,
        read_moments,
        official=True,
    ),
    "activitynet": Layout(
        "ActivityNet",
        'a .json file with a "database" of videos, their subset and their annotations (label, segment)',
        detect_activitynet,
        read_activitynet,
        official=True,
    ),
    "json": Layout(
        "JSON lists",
        "*train.json, *test.json with objects that have vid_name (or path, file, …) and label, maybe start_frame and "
        "end_frame or start and end in seconds; *vocab.json",
        detect_json,
        read_json_list,
    ),
    "csv": Layout(
        "lists with a heading",
        "train.csv, val.csv, test.csv, or one file with a column split, whose heading has path (or file, filename, "
        "fname, video) and label (or class), maybe start and end in seconds",
        detect_csv,
        read_csv,
    ),
    "frames": _list_layout(
        "lists of frame folders",
        "train.txt, val.txt with lines of folder, number of pictures, label or labels",
        "frames",
    ),
    "frame-ranges": _list_layout(
        "lists of frame folders with first and last picture",
        "lines of folder, first picture, last picture, label or labels",
        "frame-ranges",
    ),
    "frame-offsets": _list_layout(
        "lists of frame folders with first picture and count",
        "lines of folder, first picture, number of pictures, label or labels",
        "frame-offsets",
    ),
    "segments": _list_layout("lists of segments", "lines of path, start and end in seconds, label", "segments"),
    "multi-label": _list_layout("lists with several labels", "lines of path and labels", "multi-label"),
    "list": _list_layout(
        "lists", 'train.txt, val.txt, test.txt (or .csv, .tsv) with lines of "path label", any delimiter', "list"
    ),
    "folders": Layout(
        "a folder per class",
        "CLASS/VIDEO or train|val|test/CLASS/VIDEO, a video being a file or a folder of numbered pictures",
        detect_folders,
        read_folders,
    ),
}
