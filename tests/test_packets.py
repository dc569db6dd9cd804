"""What the packets of a video say, in tables."""

from __future__ import annotations

import pytest

from lightning_csn.data.packets import Index, Packet, compact, index_packets, plan_runs, temporal_layer, unpack, varies


def key(time: int | None, **flags: bool) -> Packet:
    return Packet(time, 1, is_keyframe=True, **flags)


@pytest.mark.parametrize(
    ("packets", "expected"),
    [
        ([], Index(0)),
        ([key(0), Packet(1, 1), key(2)], Index(3, 2, range(3), [0, 2])),
        # open GOP: the frame of time 2 comes after the keyframe of time 3, and is shown before it
        ([key(0), Packet(1, 1), key(3), Packet(2, 1)], Index(4, 3, range(4), [0, 3], reordered=True)),
        # the first packets are hidden by an edit list: decoding of the first frame starts before it
        ([Packet(0, 0, is_keyframe=True), Packet(1, 1), key(2)], Index(2, 1, range(1, 3), [1])),
        # nothing comes out before a keyframe
        ([Packet(0, 1), Packet(1, 1), key(2), Packet(3, 1), key(4)], Index(3, 2)),
        # times that prove nothing: doubled, missing, damaged, before the first keyframe
        ([key(0), Packet(0, 1), key(2)], Index(3, 2)),
        ([key(0), Packet(None, 1), key(2)], Index(3, 2)),
        ([key(0), Packet(1, 1, is_corrupt=True), key(2)], Index(3, 2)),
        ([key(1), Packet(0, 1), key(2)], Index(3, 2)),
        # no keyframes at all
        ([Packet(0, 1), Packet(1, 1)], Index(2, 1, range(2), [])),
        # times that do not follow at one rate
        ([key(0), Packet(1, 1), key(3)], Index(3, 3, [0, 1, 3], [0, 2])),
    ],
)
def test_packets_say_how_many_frames_there_are_and_where_to_start(packets, expected):
    assert index_packets(packets) == expected


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([], []),
        ([0], [(0, [0])]),
        ([19, 20], [(0, [19, 20])]),  # a new start would cost more than it saves
        ([10, 20], [(0, [10]), (20, [20])]),
        ([12, 20], [(0, [12, 20])]),
        ([45], [(40, [45])]),
        ([1, 21, 22, 59], [(0, [1]), (20, [21, 22]), (40, [59])]),
    ],
)
def test_decoding_starts_where_it_saves_work(numbers, expected):
    assert plan_runs(numbers, [0, 20, 40]) == expected


def test_without_a_start_before_them_frames_are_decoded_from_the_beginning():
    assert plan_runs([3, 15], [10]) == [(None, [3, 15])]
    assert plan_runs([3, 150], []) == [(None, [3, 150])]


@pytest.mark.parametrize(
    ("pictures", "frames"),
    [
        ([], []),
        ([1, 1, 1], [1, 1, 1]),
        ([1, 0, 1], [1, 1, 1]),  # nothing packed: a picture of few bytes
        ([1, 2, 0, 2, 0], [1, 1, 1, 1, 1]),
        ([1, 0, 2, 0], [1, 0, 1, 1]),
        ([1, 2, 1, 0, 2, 1], [1, 1, 1, 1, 1, 1]),  # the last picture has no packet left to push it out
    ],
)
def test_packed_pictures_come_out_one_a_packet(pictures, frames):
    assert unpack(pictures) == frames


@pytest.mark.parametrize(
    ("times", "varying"),
    [
        ([], False),
        ([5, 90], False),
        (range(0, 100, 7), False),
        ([0, 33, 67, 100, 133, 167], False),  # 30 frames per second in milliseconds
        ([0, 17, 33, 50, 67, 84], False),
        ([0, 3001, 5998, 9003, 12000], False),  # a camera's jitter
        ([0, 40, 120, 160, 200], True),  # a frame was dropped
        ([0, 40, 80, 160, 240], True),
    ],
)
def test_a_rate_varies_where_rounding_does_not_explain_it(times, varying):
    assert varies(times) is varying


def test_times_of_a_broken_header_take_no_memory():
    assert compact([0, 1, 1 << 60]) == [0, 1, 1 << 60]


PICTURE_OF_LAYER_1 = bytes([0x02, 0x02, 0xFF])
PARAMETERS = bytes([0x42, 0x01, 0xFF])


@pytest.mark.parametrize(
    ("content", "size_bytes", "layer"),
    [
        (b"\0\0\0\3" + PICTURE_OF_LAYER_1, 4, 1),
        (b"\3" + PARAMETERS + b"\3" + PICTURE_OF_LAYER_1, 1, 1),
        (b"\0\0\0\1" + PARAMETERS + b"\0\0\1" + PICTURE_OF_LAYER_1, 0, 1),
        (b"\0\0\1" + bytes([0x02, 0x01, 0xFF]), 0, 0),
        (b"\0\0\0\3" + PARAMETERS, 4, 0),  # no picture in it
        (b"\xff\xff\xff\xff\xff", 4, 0),  # damaged
        (b"", 0, 0),
    ],
)
def test_the_layer_of_an_hevc_picture_is_found_behind_its_parameters(content, size_bytes, layer):
    assert temporal_layer(content, size_bytes) == layer
