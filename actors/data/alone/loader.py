"""A data loader for anybody's own script, in place of torch.utils.data.DataLoader.

    from actors.data import Loader

    loader = Loader(dataset, batch_size=32, stages=[decode, augment], shuffle=True, seed=1)
    for batch in loader:
        ...
        torch.save({"model": ..., "loader": loader.state_dict()}, path)

Workers, hand-overs, leases and order are those of a Trireme run (deciding.py), without the graph.
What it promises beyond torch's: a slow sample delays neither its neighbours nor its worker; a
worker that dies or hangs is replaced and its sample tried again, three times; every sample of an
epoch comes exactly once, the last batch included; batches are a function of (seed, epoch, k) in
strict order, or recorded before they are delivered in ready order, whatever the number of workers;
and a state taken at any moment is gone on from exactly.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, cast

from actors.data.alone import collating, settings
from actors.data.alone.batching import Plan
from actors.data.alone.running import Running
from actors.data.alone.state import beginning, from_dicts, to_dict
from actors.data.alone.steps import StepLike
from actors.data.foresight import Features
from actors.data.ordering import Order

# Between epochs; within one; or to go on within one from a state that was loaded.
_Standing = Literal["between", "within", "loaded"]


class Dataset(Protocol):
    """Any sequence: a list, an array, a torch data set, anything with a length and places."""

    def __getitem__(self, index: int, /) -> Any:
        """The sample at a place. Called in the workers."""
        ...

    def __len__(self) -> int:
        """How many there are."""
        ...


class Loader:
    """Batches of a data set, epoch after epoch."""

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int = 1,
        *,
        stages: Sequence[StepLike] = (),
        shuffle: bool = False,
        seed: int = 0,
        order: Order = "strict",
        num_workers: int | None = None,
        max_workers: int | None = None,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        drop_last: bool = False,
        prefetch_batches: int = 4,
        rank: int = 0,
        ranks: int = 1,
        timeout_s: float = 60.0,
        max_deaths: int = 3,
        max_bad_share: float = 0.01,
        max_sample_bytes: int = 1 << 30,
        memory_bytes: int = 1 << 30,
        worker_memory_bytes: int = 0,
        features: Callable[[int], Features] | None = None,
        seed_modules: bool = True,
        ledger: str | Path | None = None,
    ) -> None:
        """Nothing starts before the first batch is asked for.

        dataset           `dataset[i]` is the first stage, and runs in the workers
        stages            functions of one value, after it; see `steps.py` for what they may be;
                          a sample that one returns None for is left out, and counted
        order             "strict": batch k is a function of (seed, epoch, k); "ready": what is
                          finished first comes first, as recorded
        num_workers       processes that compute; None: one for each processor we may use
        max_workers       so many when samples wait more than they compute; None: four times as many
        collate_fn        from a list of samples to a batch; None: as torch does it
        prefetch_batches  made ahead at least; more where slow samples need it
        rank, ranks       this program's part of a distributed one
        timeout_s         a worker that is on one sample for longer is replaced
        max_deaths        workers a sample may end before it is left out, by name
        max_bad_share     of samples left out, beyond which the loader stops
        memory_bytes      of shared memory for samples on their way, all workers together
        worker_memory_bytes  that a worker may use beyond what the program had; 0: half of what is
                          available, so that one sample cannot take the machine down
        features          of sample i: its kind and size, by which slow ones are foreseen
        seed_modules      seed random, numpy.random and torch before every stage
        ledger            a file that keeps which samples went into which batch

        Raises ValueError for what cannot be.
        """
        wanted = settings.checked(
            settings.Settings(
                batch_size=batch_size,
                order=order,
                drop_last=drop_last,
                prefetch_batches=prefetch_batches,
                num_workers=num_workers,
                max_workers=max_workers,
                rank=rank,
                ranks=ranks,
                timeout_s=timeout_s,
                max_deaths=max_deaths,
                max_bad_share=max_bad_share,
                max_sample_bytes=max_sample_bytes,
                memory_bytes=memory_bytes,
                worker_memory_bytes=worker_memory_bytes,
                seed=seed,
                seed_modules=seed_modules,
            ),
            len(dataset),
        )
        plan = Plan(len(dataset), seed, shuffle, rank, ranks)
        self._setup = settings.Setup(
            wanted=wanted,
            plan=plan,
            steps=settings.steps_of(dataset, stages),
            name=settings.namer(dataset),
            collate=collate_fn or collating.collate,
            features=features,
            ledger=None if ledger is None else Path(ledger),
        )
        self._position = beginning(len(dataset))
        self._state: _Standing = "between"
        self._running: Running | None = None
        self.samples: tuple[int, ...] = ()  # that the last batch was made of

    # --- iterating --------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Batches of a whole epoch, with no sample left out."""
        plan, wanted = self._setup.plan, self._setup.wanted
        whole, rest = divmod(len(range(plan.rank, plan.samples, plan.ranks)), wanted.batch_size)
        return whole + (rest > 0 and not wanted.drop_last)

    def __iter__(self) -> Iterator[Any]:
        """The epoch of a state that was loaded, from where it stood; otherwise the next one, from
        its start.

        All iterators of a loader are one: what one delivers, no other will.
        """
        if self._state == "within":
            self._next_epoch()
        self._begin()
        return _Batches(self)

    def _begin(self) -> None:
        if self._running is None:
            self._running = Running(self._setup)
        self._running.begin(self._position)
        self._state = "within"

    def _next_epoch(self) -> None:
        if self._running is not None:
            self._position.left_out.update(self._running.left_out())
        self._position.next_epoch()

    def _next(self) -> Any:
        if self._state == "between":
            raise StopIteration
        if self._state == "loaded" or self._running is None:
            self._begin()  # a state was loaded under an iterator: it goes on from there
        assert self._running is not None
        batch = self._running.take()
        if batch is None:
            self._next_epoch()
            self._state = "between"
            raise StopIteration
        self.samples = batch.samples
        self._position.delivered(batch.samples)
        return batch.value

    # --- going on ---------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The epoch that batches come from, or will."""
        return self._position.epoch

    def state_dict(self) -> dict[str, Any]:
        """Where this loader stands: after the last batch that was taken from it. Plain values."""
        if self._running is not None:
            self._position.left_out.update(self._running.left_out())
        return to_dict(self._position, self._setup.plan)

    def load_state_dict(self, state: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Go on from there. Of several ranks: the rank's own state, or those of all of them, which
        may have been of another number.

        Iterators that exist go on from there too. Raises `StateError`.
        """
        states = cast("Iterable[Any]", [state] if isinstance(state, Mapping) else state)
        self._position = from_dicts(states, self._setup.plan)
        self._state = "loaded"

    # --- looking in -------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What people want to know of a loader that runs: queues, cut-off, workers, losses."""
        return {} if self._running is None else self._running.status()

    def close(self) -> None:
        """End the workers now. Iterating goes on from here with new ones."""
        if self._running is None:
            return
        self._position.left_out.update(self._running.left_out())
        self._running.close()
        self._running = None
        if self._state == "within":
            self._state = "loaded"

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


class _Batches(Iterator[Any]):
    """An iterator over what its loader delivers."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def __next__(self) -> Any:
        """The next batch. Raises `LoaderError` when the loader cannot go on."""
        return self._loader._next()  # pyright: ignore[reportPrivateUsage]
