"""By what networks and videos are known again."""

import torch

from lightning_csn.data.samples import Sample
from lightning_csn.fingerprints import describe_videos, hash_weights


def test_networks_whose_tensors_have_the_same_bytes_are_told_apart():
    one, other = (torch.nn.Linear(*sizes, bias=False) for sizes in ((2, 3), (3, 2)))
    other.weight = torch.nn.Parameter(one.weight.detach().view(2, 3))
    assert hash_weights(one) != hash_weights(other)
    other.weight = one.weight
    assert hash_weights(one) == hash_weights(other)


def test_a_network_is_known_by_all_of_its_tensors(tiny_model):
    network = tiny_model().network
    before = hash_weights(network)
    assert hash_weights(tiny_model().network) == before
    network.stem.norm.running_mean[3] += 1e-3
    after = hash_weights(network)
    assert len({before, after, hash_weights(network.bfloat16())}) == 3


def test_videos_are_known_by_paths_labels_and_parts_wherever_they_lie():
    videos = [Sample("a/run/1.mp4", 0, 0), Sample("a/run/2.mp4", 1, 1)]
    known = describe_videos(videos)["sha256"]
    assert describe_videos([video._replace(path=f"s3://b/{video.path}") for video in videos])["sha256"] == known
    for change in ({"path": "a/run/3.mp4"}, {"label": 0}, {"part": (0.0, 1.0, "seconds")}):
        assert describe_videos([videos[0], videos[1]._replace(**change)])["sha256"] != known
    assert describe_videos(videos[:1])["first"] == "1.mp4"
