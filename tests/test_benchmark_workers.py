"""The speed of a DataLoader's workers, of clocks that are made up."""

from lightning_csn import benchmark_workers


def test_workers_that_take_turns_are_no_faster_than_one(monkeypatch, make_video, tmp_path):
    """Of two, one is done before the other begins; the sum of the speeds of each would be twice what there is."""
    clocks = [(0.0, 1.0, 0.5), (1.0, 2.0, 0.5), (2.0, 3.0, 0.5), (3.0, 4.0, 0.5)]
    monkeypatch.setattr(benchmark_workers, "DataLoader", lambda dataset, **options: clocks)
    monkeypatch.setattr(benchmark_workers, "usable_processors", lambda: 2)
    paths = [str(make_video(tmp_path / "a.mp4"))]
    speed = benchmark_workers.measure_dataset(paths, benchmark_workers.training_clip((4, 2)), workers=2, clips_each=2)
    assert (speed["clips_per_second"], speed["clips_per_second_per_core"]) == (1.0, 0.5)
    assert speed["clips_per_cpu_second"] == 2.0
