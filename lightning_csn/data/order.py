"""Which sample comes next: an order for each epoch that any number of processes share, and that can be resumed.

Every random choice in an item of training is a function of (seed, epoch, index): it hangs neither on the number of
workers and processes, nor on how far workers read ahead, nor on whether the run was stopped and resumed in between.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import weakref
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import DataLoader
from torch.utils.data.distributed import DistributedSampler

from lightning_csn.data.samples import Label, numbers_of

_log = logging.getLogger(__name__)

_WHOLE_EPOCH = -1  # the index that the order of an epoch is drawn with; those of samples start at 0


class Draw(NamedTuple):
    """A sample to read, and the seed of everything that is random in it."""

    index: int  # type: ignore[assignment]  # a tuple's method of that name is of no use here
    seed: int


def draw_seed(seed: int, epoch: int, index: int) -> int:
    """A seed from 0 up to 2**63 for one sample in one epoch; neighbours have nothing in common.

    >>> draw_seed(0, 0, 0), draw_seed(0, 0, 1)
    (2673160886387138021, 5108092377123895874)
    """
    digest = hashlib.sha256(f"{seed} {epoch} {index}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def batch_seed(seeds: Iterable[int]) -> int:
    """A seed from 0 up to 2**63 for a training step, from those of its samples.

    >>> batch_seed([3, 5]), batch_seed([5, 3])
    (2052732289281471812, 2057045617204240412)
    """
    digest = hashlib.sha256(" ".join(map(str, seeds)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def expected_counts(labels: Sequence[Label], balance: float) -> list[float]:
    """How often each sample comes in an epoch of as many draws, in the mean.

    balance: 0 takes each once; 1 takes every class as often, and in between a class of n samples comes in proportion
        to n ** (1 - balance). The samples of a class come alike. One of several classes comes as its rarest does, one
        of none as the most frequent class.

    >>> expected_counts([0, 0, 0, 1], 1.0)
    [0.6666666666666666, 0.6666666666666666, 0.6666666666666666, 2.0]
    """
    sizes = Counter(number for label in labels for number in numbers_of(label))
    most = max(sizes.values(), default=1)
    rarest = [min((sizes[number] for number in numbers_of(label)), default=most) for label in labels]
    weights = [size**-balance for size in rarest]
    whole = math.fsum(weights)
    return [len(labels) * weight / whole for weight in weights]


class TrainOrder(DistributedSampler[Draw]):
    """The samples of an epoch, shuffled anew in each, of which every process gets as many.

    All processes together take the first of the order, then the next, and so on. Where they do not come out even at the
    end, the first of the epoch are seen twice, as with torch's DistributedSampler; a single process never sees one
    twice. Lightning replaces samplers with its own, but leaves a DistributedSampler alone.

    The place is a number of samples over all processes, so that a run can go on with more or fewer of them. `set_epoch`
    begins an epoch at its first sample, but for the epoch whose place was loaded.

    num_samples: of the data set. seed: of the run; the same on all processes.
    labels, balance: with a balance above 0, an epoch has as many samples, but some of them several times, with other
        random changes, and others not at all: see `expected_counts`, from which no sample's and no class's count is
        further away than 1. Which ones is drawn anew in each epoch.

    >>> order = TrainOrder(4, seed=0)
    >>> [draw.index for draw in order], order.set_epoch(1), [draw.index for draw in order]
    ([2, 3, 1, 0], None, [0, 2, 3, 1])
    >>> order.load_state_dict({"seed": 0, "epoch": 1, "position": 3, "num_samples": 4})
    >>> [draw.index for draw in order]
    [1]
    >>> sorted(draw.index for draw in TrainOrder(4, seed=0, labels=[0, 0, 0, 1], balance=1.0))
    [1, 2, 3, 3]
    """

    def __init__(
        self,
        num_samples: int,
        *,
        seed: int,
        world_size: int = 1,
        rank: int = 0,
        shuffle: bool = True,
        labels: Sequence[Label] = (),
        balance: float = 0.0,
    ) -> None:
        samples: Any = range(num_samples)  # no more than its length is asked for
        super().__init__(samples, num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self.count = num_samples
        self._expected = expected_counts(labels, balance) if balance else []
        # One class after the other: then what is rounded up in one place and down in another is of one class.
        self._classes: dict[Label, list[int]] = {}
        for index, label in enumerate(labels):
            self._classes.setdefault(label, []).append(index)
        self.position = 0  # where the order of this epoch is taken up
        self.before_epoch: Callable[[], Callable[[], None] | None] = lambda: None  # the loader's, or a dead reference

    def __iter__(self) -> Iterator[Draw]:
        # A sample that comes again is numbered beyond the others, for another seed.
        numbers = list(range(self.count))
        generator = torch.Generator().manual_seed(draw_seed(self.seed, self.epoch, _WHOLE_EPOCH))
        if self._expected:
            counts = self._draw_counts(generator)
            numbers = [index + again * self.count for index in numbers for again in range(counts[index])]
        if self.shuffle:
            numbers = [numbers[place] for place in torch.randperm(self.count, generator=generator).tolist()]
        rest = numbers[self.position :]
        rest += itertools.islice(itertools.cycle(numbers), -len(rest) % self.num_replicas)
        for number in rest[self.rank :: self.num_replicas]:
            yield Draw(number % self.count, draw_seed(self.seed, self.epoch, number))

    def _draw_counts(self, generator: torch.Generator) -> list[int]:
        """How often each sample comes in an epoch, by systematic sampling: in the sum exactly as many as there are."""
        places = torch.rand(self.count, generator=generator).tolist()  # within a class
        reached = (int(torch.randint(2**20, (), generator=generator)) + 0.5) / 2**20  # no sum's error reaches 0 or 1
        counts = [0] * self.count
        for same in self._classes.values():
            for index in sorted(same, key=places.__getitem__):
                before = math.floor(reached)
                reached += self._expected[index]
                counts[index] = math.floor(reached) - before
        return counts

    def __len__(self) -> int:
        """How many samples a whole epoch has for this process."""
        return math.ceil(self.count / self.num_replicas)

    @property
    def remaining(self) -> int:
        """How many samples there are for this process from the place on."""
        return math.ceil((self.count - self.position) / self.num_replicas)

    def set_epoch(self, epoch: int) -> None:
        """Begin an epoch; the one that a loaded place is in goes on from there."""
        if (call := self.before_epoch()) is not None:
            call()
        if epoch != self.epoch:
            self.epoch, self.position = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """The place where iteration begins; how far it got is for the loader to say, since workers read ahead."""
        return {"seed": self.seed, "epoch": self.epoch, "position": self.position, "num_samples": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from a place. An epoch of other samples than there are now begins anew, with a warning."""
        self.seed, self.epoch, self.position = state["seed"], state["epoch"], state["position"]
        if state["num_samples"] == self.count:
            return
        finished = state["position"] >= state["num_samples"]
        self.position = self.count if finished else 0
        if not finished:
            _log.warning(
                "the run was stopped in the middle of an epoch of %d samples and there are %d now: the epoch starts "
                "from its beginning",
                state["num_samples"],
                self.count,
            )


class _Counts(Protocol):
    ready: int
    started: int
    processed: int
    completed: int


class Progress(Protocol):
    """How many batches of this epoch were taken, as Lightning counts them (trainer.fit_loop.epoch_loop)."""

    @property
    def current(self) -> Any:
        """Batches ready, started, processed and completed in this epoch."""
        ...


class ResumableLoader(DataLoader[Any]):
    """A DataLoader over a TrainOrder that knows which batches were used, as opposed to read ahead.

    Lightning takes a loader with state_dict and load_state_dict for one whose place is in the checkpoint. With another
    sampler, such as Lightning's overfit_batches puts in, there is no place: an epoch begins at its first batch.

    progress: Lightning's count of the epoch's batches. A batch counts as used once training has processed it; without
        this, once it was handed out. After a resume on another number of processes, or with another size of batches,
        the count is brought to what it would be here, or Lightning would end the epoch at the wrong batch.
    """

    def __init__(self, *args: Any, progress: Progress | None = None, **options: Any) -> None:
        super().__init__(*args, **options)
        self.progress = progress
        self._handed_out = 0
        self._running: int | None = None  # the epoch that is being iterated over
        self._before = 0  # batches that Lightning had counted when this iteration began
        self._restored = False
        if isinstance(self.sampler, TrainOrder):
            # Weak, for of a loader in a cycle workers would end only when the garbage is collected, and slowly.
            self.sampler.before_epoch = weakref.WeakMethod(self._align)

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator, so that nothing is read before the first batch is asked for: Lightning makes its iterator before
        # it says which epoch it is, and workers would have begun with the wrong samples.
        if isinstance(self.sampler, TrainOrder):
            self._running = self.sampler.epoch
        self._handed_out = 0
        self._before = self._processed()
        for batch in super().__iter__():
            self._handed_out += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The seed, the epoch, and how many samples of it all processes have used."""
        order = self.sampler
        if not isinstance(order, TrainOrder):
            return {}
        state = order.state_dict()
        if self._running == order.epoch:
            used = self._handed_out if self.progress is None else self._processed() - self._before
            state["position"] = min(order.count, order.position + used * self._samples_per_batch(order))
        return state

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from what `state_dict` gave, on this or another number of processes."""
        if isinstance(self.sampler, TrainOrder) and state:
            self.sampler.load_state_dict(state)
            self._restored = True

    def _processed(self) -> int:
        return 0 if self.progress is None else self.progress.current.processed

    def _samples_per_batch(self, order: TrainOrder) -> int:
        assert self.batch_size is not None
        return self.batch_size * order.num_replicas

    def _align(self) -> None:
        """Bring Lightning's counts, which came from the checkpoint, to batches of this run."""
        order = self.sampler
        if not self._restored or self.progress is None or not isinstance(order, TrainOrder):
            return
        self._restored = False
        assert self.batch_size is not None
        used = len(self) - math.ceil(order.remaining / self.batch_size)
        counts: _Counts = self.progress.current
        shift = used - counts.processed
        counts.ready += shift
        counts.started += shift
        counts.processed += shift
        counts.completed += shift


class EachVideoOnce(DistributedSampler[int]):
    """Every video on exactly one process, none padded, none dropped, in the order of their numbers.

    A process that would get none repeats one: each must take part in what processes do together in its first batch.
    Lightning replaces samplers with its own, which pads, but leaves a DistributedSampler alone.

    without: numbers of videos to leave out, such as those that a stopped test has scored already.

    >>> [list(EachVideoOnce(range(5), num_replicas=3, rank=rank)) for rank in range(3)]
    [[0, 3], [1, 4], [2]]
    >>> [list(EachVideoOnce(range(5), num_replicas=3, rank=rank, without=[0, 2])) for rank in range(3)]
    [[1], [3], [4]]
    >>> [list(EachVideoOnce(range(2), num_replicas=3, rank=rank)) for rank in range(3)]
    [[0], [1], [0]]
    """

    def __init__(self, dataset: Any, *, num_replicas: int, rank: int, without: Collection[int] = ()) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=False)
        count = len(dataset)
        left_out = set(without)
        numbers = [number for number in range(count) if number not in left_out]
        self.numbers = numbers[rank::num_replicas] or [rank % count]
        self.num_samples, self.total_size = len(self.numbers), count

    def __iter__(self) -> Iterator[int]:
        return iter(self.numbers)

    def __len__(self) -> int:
        return len(self.numbers)
