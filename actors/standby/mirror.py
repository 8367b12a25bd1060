"""What a standby does next: which bytes it asks for, what it puts in place, what it lets go. Pure.

A round begins with what the run's host says is there. Files that steps are noted in come first and
to their end, then one piece of a checkpoint, so that a large one never keeps steps waiting. What
has been begun is finished while it lasts; when it is gone, there is something newer.

A copy only loses what something newer and whole has made needless.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from actors import journal
from actors.standby import catalogue
from protocol.messages import FileFacts

# What is asked for at once.
PIECE_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Fetch:
    """Ask for `size` bytes of `path` from `offset` on, and not for what has been added since."""

    path: str
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class Begin:
    """What has been taken of `path` is of no use: let it be empty."""

    path: str


@dataclass(frozen=True, slots=True)
class Cut:
    """The run has gone on from before the end of `path`: what lies behind `size` never was."""

    path: str
    size: int


@dataclass(frozen=True, slots=True)
class Finish:
    """All of `path` is here: put it in place of the older one."""

    path: str
    modified_ns: int


@dataclass(frozen=True, slots=True)
class Complete:
    """All files of the checkpoint of `step` are here: check them, and give it its name."""

    step: int


@dataclass(frozen=True, slots=True)
class Remove:
    """Let `path` go, which may be a directory."""

    path: str


Instruction = Fetch | Begin | Cut | Finish | Complete | Remove


@dataclass(frozen=True, slots=True)
class Held:
    """A file of the copy, or what has been taken of it so far."""

    size: int
    modified_ns: int = 0  # of one that is whole, where it came from


@dataclass(slots=True)
class Mirror:
    """Knows what is there and what is here."""

    held: dict[str, Held]  # in their places; of checkpoints, those that are not complete yet
    saved: int = -1  # the newest checkpoint that is complete here
    _there: dict[str, FileFacts] = field(default_factory=dict[str, FileFacts])
    _taken: dict[str, Held] = field(default_factory=dict[str, Held])  # of whole files under way
    _due: list[str] = field(default_factory=list[str])
    _todo: list[Instruction] = field(default_factory=list[Instruction])
    _piece_due: bool = False

    def told(self, files: Iterable[FileFacts]) -> None:
        """A round begins: this is there."""
        self._there = {file.path: file for file in files if not self._needless(file.path)}
        due = (path for path in self._there if catalogue.step_of(path) < 0)
        self._due = catalogue.ordered(path for path in due if not self._early(path))
        self._piece_due = True
        for path in [*self._taken]:
            if path not in self._there:
                self._taken.pop(path)
        for step in sorted(catalogue.steps_saved([*self.held])):
            if not any(catalogue.step_of(path) == step for path in self._there):
                self._forget(step)

    def next(self) -> Instruction | None:
        """What to do now; None: the round is over."""
        if self._todo:
            return self._todo.pop(0)
        while self._due:
            found = self._of(self._there[self._due[0]])
            if found is not None:
                return found
            self._due.pop(0)
        return self._of_checkpoint() if self._piece_due else None

    def took(self, path: str, nbytes: int) -> None:
        """So many bytes have come, and been written. 0: it is gone, or shorter than was said."""
        if not nbytes:
            self._due = [due for due in self._due if due != path]
            self._taken.pop(path, None)
            self._piece_due = False
            return
        table = self._taken if catalogue.kind_of(path) == "whole" else self.held
        before = table.get(path, Held(0))
        table[path] = Held(before.size + nbytes, self._there[path].modified_ns)

    def completed(self, step: int, *, whole: bool) -> None:
        """A `Complete` was carried out, and the checkpoint is `whole`, or of no use."""
        self._forget(step, remove=not whole)
        if whole:
            self.saved = step
            self._todo += [Remove(f"journal/{name}") for name in self._superseded(step)]

    @property
    def startable(self) -> bool:
        """Whether all is here that a run needs besides steps."""
        ledgers = (held for held in self.held if held.endswith(".sqlite"))
        return all(path in self.held for path in catalogue.SMALL) and any(ledgers)

    @property
    def lacking_bytes(self) -> int:
        """What is there and not here."""
        return sum(
            max(0, file.size - self._size(path))
            for path, file in self._there.items()
            if not self._needless(path)
        )

    # --- inside -----------------------------------------------------------------------------------

    def _needless(self, path: str) -> bool:
        """Whether the checkpoint that is here makes it so."""
        name = path.rpartition("/")[2]
        saved = -1 < catalogue.step_of(path) <= self.saved
        return saved or bool(journal.superseded([name], self.saved))

    def _early(self, path: str) -> bool:
        """Whether it tells of steps whose composition is in a ledger that is still to come: the
        notes of a loader's new life are there at once, the copy that they go on from is not.
        """
        if journal.part_of(path.rpartition("/")[2]) is None:
            return False
        ledgers = (journal.ledger_number(other.rpartition("/")[2]) for other in self._there)
        newest = max((number for number in ledgers if number is not None), default=None)
        copy = "" if newest is None else f"journal/{journal.ledger_names(newest)[0]}"
        return bool(copy) and copy not in self._there and copy not in self.held

    def _size(self, path: str) -> int:
        both = self.held.get(path, Held(0)), self._taken.get(path, Held(0))
        return max(held.size for held in both)

    def _of(self, file: FileFacts) -> Instruction | None:
        """What is to be done about a file that belongs to no checkpoint."""
        path, held = file.path, self.held.get(file.path)
        if catalogue.kind_of(path) == "growing":
            size = 0 if held is None else held.size
            if size > file.size:
                self.held[path] = Held(file.size)
                return Cut(path, file.size)
            return self._fetch(path, size)
        if held is not None and (held.size, held.modified_ns) == (file.size, file.modified_ns):
            return None
        taken = self._taken.get(path)
        if taken is None or taken.modified_ns != file.modified_ns or taken.size > file.size:
            self._taken[path] = Held(0, file.modified_ns)
            return Begin(path)
        if taken.size < file.size:
            return self._fetch(path, taken.size)
        self.held[path] = self._taken.pop(path)
        self._todo += self._older_ledgers(path)
        return Finish(path, file.modified_ns)

    def _fetch(self, path: str, offset: int) -> Fetch | None:
        size = min(PIECE_BYTES, self._there[path].size - offset)
        return Fetch(path, offset, size) if size > 0 else None

    def _of_checkpoint(self) -> Instruction | None:
        newer = {s for s in catalogue.steps_saved([*self._there]) if s > self.saved}
        begun = newer & catalogue.steps_saved([*self.held])
        if not newer:
            return None
        step = max(begun or newer)
        mine = (path for path in self._there if catalogue.step_of(path) == step)
        for path in catalogue.ordered(mine):
            size = self._size(path)
            if size < self._there[path].size:
                self._piece_due = False
                return self._fetch(path, size)
        self._piece_due = False
        return Complete(step)

    def _forget(self, step: int, *, remove: bool = True) -> None:
        for path in [path for path in self.held if catalogue.step_of(path) == step]:
            del self.held[path]
        if remove:
            self._todo.append(Remove(f"checkpoints/step-{step:08d}.tmp"))

    def _superseded(self, step: int) -> list[str]:
        names = [path.rpartition("/")[2] for path in self.held]
        old = journal.superseded(names, step)
        for name in old:
            del self.held[f"journal/{name}"]
        return old

    def _older_ledgers(self, path: str) -> list[Instruction]:
        """A newer copy of the ledger is whole."""
        number = journal.ledger_number(path.rpartition("/")[2])
        if number is None:
            return []
        old = [
            held
            for held in self.held
            if (other := journal.ledger_number(held.rpartition("/")[2])) is not None
            and other < number
        ]
        for held in old:
            del self.held[held]
        return [Remove(held) for held in old]


@dataclass(slots=True)
class Reach:
    """How far a run could go on from the copy."""

    saved: int = -1
    _commits: set[int] = field(default_factory=set[int])
    _whole: set[int] = field(default_factory=set[int])

    def committed(self, steps: Iterable[int], whole: Iterable[int]) -> None:
        """The copy holds all that these steps need; from those that are `whole` it goes on."""
        self._commits.update(step for step in steps if step > self.saved)
        self._whole.update(step for step in whole if step > self.saved)

    def forget(self) -> None:
        """Something has been cut off: steps are to be counted again."""
        self._commits.clear()
        self._whole.clear()

    def complete(self, step: int) -> None:
        """A checkpoint is complete."""
        self.saved = step
        self._commits = {commit for commit in self._commits if commit > step}
        self._whole = {commit for commit in self._whole if commit > step}

    @property
    def step(self) -> int:
        """The last such step; -1: none yet."""
        step = last = self.saved
        while step >= 0 and step + 1 in self._commits:
            step += 1
            last = step if step in self._whole else last
        return last


def held_files(sizes: Mapping[str, tuple[int, int]]) -> dict[str, Held]:
    """Files (size, modified) of a copy, as far as they belong to one."""
    return {
        path: Held(*facts) for path, facts in sizes.items() if catalogue.kind_of(path) is not None
    }
