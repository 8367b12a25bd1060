"""The loader: hands samples to data workers and batches to trainers, and keeps the ledger.

    prepare   once per run, in a child process: corpus into the ledger, tokenizer.json
    serve     hear -> what became of samples -> compose and record -> answer -> lease

It decides nothing itself: leases.py, feed.py and replay.py do, the ledger remembers, crew.py and
batches.py carry out. Memory stays bounded by the look-ahead: batches live in the ledger's spool.
"""

import os
import signal
from pathlib import Path

import msgspec

from actors import process
from actors.data import noting
from actors.data.batches import Answer, Batches
from actors.data.crew import Crew, Outcome
from actors.data.cutoffs import NEVER_S
from actors.data.database import LedgerError, TakenOver
from actors.data.feed import Feed, Recorded, Refusal
from actors.data.learning import Learning
from actors.data.leases import LeaseTable, Poisoned
from actors.data.ledger import Ledger
from actors.data.losses import Losses
from actors.data.packing import Document
from actors.data.prepare import Report
from actors.data.prompts import MAX_FILE_BYTES, Prompts
from actors.data.quality import Quality
from actors.data.stages import Options, SampleProblem, State, read
from actors.data.terms import facts_of, shape_of, terms_of
from actors.door import Door
from actors.loop import AsyncMailbox, serve
from actors.rundir import RunDir
from actors.seat import Seat
from actors.standby.shelf import Shelf
from protocol import messages as m
from protocol.clock import MonotonicClock
from protocol.errors import EndpointError
from protocol.tensors import Frames
from protocol.transport import Received, Sent

# Beyond this many turns the earlier sample goes first, be it slow or not.
URGENT_TURNS = 32
# A batch that found its trainer's queue full is tried again after this.
RETRY_S = 0.05
IDLE_S = 0.25


class Loader:
    """One life of the loader."""

    def __init__(self, seat: Seat, mailbox: AsyncMailbox) -> None:
        self._seat = seat
        self._mailbox = mailbox
        self._clock = MonotonicClock()
        self._run = RunDir(Path(seat.run_dir))
        self._topology = seat.topology()
        self._requests: list[Received] = []  # heard before there was anything to answer with
        self._door = Door(
            self._run.keys,
            self._topology.remote,
            lambda endpoint, curve: mailbox.bind("remote", endpoint, curve),
        )
        self._shelf = Shelf(self._run, self._topology, mailbox, self._clock)
        self._quality = Quality(self._topology.data)
        self._losses = Losses(self._quality, mailbox.log)

    async def run(self) -> str:
        """Serve until told to stop; why the run cannot go on, or "" when it can."""
        try:
            self._open_door()
            durable = self._topology.data.order == "ready"
            incarnation = self._seat.incarnation
            with Ledger(self._run.ledger, incarnation=incarnation, durable=durable) as ledger:
                problem = await self._prepare(ledger)
                if problem or self._mailbox.stopping:
                    return problem
                return await self._serve(ledger)
        except TakenOver as error:
            self._mailbox.log.warning("another loader has taken over", why=str(error))
            return ""
        except LedgerError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or self._run.path}: {error.strerror or error}"

    def _open_door(self) -> None:
        """Let invited hosts in again after a restart."""
        self._shelf.open()
        if not self._door.was_opened:
            return
        try:
            self._door.open()
        except EndpointError as error:
            self._mailbox.log.error("remote workers cannot return", why=str(error))  # noqa: TRY400

    # --- preparing --------------------------------------------------------------------------------

    async def _prepare(self, ledger: Ledger) -> str:
        """See that corpus and tokenizer are there. Returns what a person has to put right."""
        if self._run.tokenizer.exists() and ledger.has_corpus():
            return ""
        output = self._run.logs / "prepare.out"
        output.unlink(missing_ok=True)
        arguments = str(self._run.path), str(self._seat.incarnation), str(os.getpid())
        command = process.python("-m", "actors.data.prepare", *arguments)
        # Training has threads, and the trainers that could use these cores have no batch yet.
        anywhere = range(os.cpu_count() or 1)
        env = process.environment(self._seat.run_id)
        child = process.start(command, output=output, env=env, cpus=anywhere)
        try:
            while (ended := next(process.reap(child.pid), None)) is None:
                self._mailbox.progress("the corpus to be listed and its tokenizer trained")
                for received in await self._mailbox.receive(RETRY_S):
                    self._hear_early(received)
                if self._mailbox.stopping:
                    return ""
        finally:
            process.send_signal(child, signal.SIGKILL)
        lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        try:
            report = msgspec.json.decode(lines[-1] if lines else "", type=Report)
        except msgspec.MsgspecError:
            tail = " | ".join(lines[-5:])
            return f"preparing the data failed ({process.words(ended.code)}): {tail}"
        self._mailbox.log.info("data prepared", **msgspec.structs.asdict(report))
        return report.problem

    def _hear_early(self, received: Received) -> None:
        match received.message:
            case m.InviteRequest() as request:
                self._invite(request)
            case m.BatchRequest() | m.PromptRequest():
                self._requests.append(received)
            case _:
                pass  # workers ask again until there is a plan

    # --- serving ----------------------------------------------------------------------------------

    def _begin(self, ledger: Ledger) -> None:
        """Everything that needs the corpus and the tokenizer."""
        wanted, data = self._topology, self._topology.data
        corpus = ledger.corpus()
        assert corpus is not None
        self._corpus = corpus
        self._tokenizer = self._run.tokenizer.read_bytes()
        ledger.bind_to(facts_of(wanted, self._tokenizer))
        training, held_out = corpus.split(data.held_out_share)
        shape, chosen = shape_of(wanted), corpus.choosing(training, wanted.seed)

        def feed(recorded: Recorded) -> Feed:
            expect = self._crew.learning.expect
            return Feed(shape, chosen, recorded, seed=wanted.seed, order=data.order, expect=expect)

        table = LeaseTable(
            lease_s=data.lease_s,
            limit=data.credit,
            max_deaths=data.max_deaths_per_sample,
            # Never reused within a run, whichever life of the loader counts.
            first_lease=self._seat.incarnation << 32,
            # In strict order nothing is gained by what lies far beyond the next step.
            urgency=URGENT_TURNS if data.order == "strict" else None,
        )
        terms = terms_of(wanted, self._tokenizer)
        learning = Learning(len(corpus), features=corpus.features, cutoff_s=terms.plan.cutoff_s)
        send, log = self._mailbox.send, self._mailbox.log
        sockets = self._seat.socket_dir

        def noted(name: str, life: int) -> int | None:
            return noting.read(noting.path_of(sockets, name), life)

        self._crew = Crew(table, corpus, terms, send, log, learning, noted)
        self._batches = Batches(ledger, shape, feed)
        self._losses.begin(ledger)
        prompts = [int(sample) for sample in held_out if self._suits_prompts(int(sample))]
        # A token is two bytes or more of code, so a prompt of this length leaves room to go on.
        chars = 2 * (wanted.model.seq_len - wanted.rollout.max_new_tokens)
        self._prompts = Prompts(wanted.seed, prompts, self._held_out_text, chars)
        self._mailbox.log.info(
            "loader serves",
            training=len(training),
            held_out=len(held_out),
            next_step=self._batches.feed.next_step,
            epoch=self._batches.feed.epoch,
        )

    async def _serve(self, ledger: Ledger) -> str:
        self._begin(ledger)
        self._shelf.serve(ledger)
        for received in self._requests:
            self._hear(received)
        timeout_s = 0.0
        while not self._mailbox.stopping:
            for received in await self._mailbox.receive(timeout_s):
                self._mailbox.progress()  # a wait that is reported lasted no longer than until now
                self._hear(received)
            self._learn(self._crew.watch(self._clock.now()))
            unsent = self._answer()
            self._lease()
            if self._is_hopeless():
                return self._why_hopeless()
            if problem := self._quality.problem():
                return problem
            self._show()
            timeout_s = RETRY_S if unsent else IDLE_S
        self._crew.dismiss(self._mailbox.stopping)
        self._shelf.dismiss(self._mailbox.stopping)
        self._mailbox.log.info("data served", **self._quality.figures(), parked=self._crew.parked)
        return ""

    def _hear(self, received: Received) -> None:
        now = self._clock.now()
        match received.message:
            case m.BatchRequest() as request:
                self._hear_request(received.sender, request)
            case m.PromptRequest() as request:
                self._send_prompts(received.sender, request)
            case m.InviteRequest() as request:
                self._invite(request)
            case m.WorkerLog(records=records):
                for record in records:
                    said = {**record, "actor": received.sender}
                    self._mailbox.send("telemetry", m.LogRecord(record=said))
            case _ if received.role == "standby":
                self._shelf.hear(received)
            case _:
                self._learn(self._crew.hear(received, now))

    def _invite(self, request: m.InviteRequest) -> None:
        admits = self._shelf if request.role == "standby" else self._door
        self._mailbox.send("control", admits.invite(request))

    def _hear_request(self, peer: str, request: m.BatchRequest) -> None:
        try:
            self._batches.request(request.step, request.rank, peer)
        except ValueError as error:
            self._mailbox.log.error("no such batch", peer=peer, why=str(error))  # noqa: TRY400

    def _learn(self, outcomes: list[Outcome]) -> None:
        """Pass on what became of samples."""
        for outcome in outcomes:
            match outcome:
                case Document(key=key):
                    self._quality.good(key[1], self._corpus.language(key[1]))
                    self._batches.finished(outcome)
                case Refusal(key=key):
                    # The same sample may be on its way for two epochs at once.
                    if not self._batches.feed.leaves_out(key[1]):
                        self._losses.refused(self._corpus.name(key[1]), outcome)
                    self._batches.refused(outcome)
                case Poisoned(key=key):
                    if not self._batches.feed.leaves_out(key[1]):
                        self._losses.poisoned(self._corpus.name(key[1]), outcome)
                    reason = f"{outcome.kind}: {outcome.reason}"
                    self._batches.quarantined(key, reason, outcome.deaths)

    def _lease(self) -> None:
        """Until nobody wants anything: reading for another host may refuse samples, which makes
        room for others."""
        now = self._clock.now()
        while True:
            if self._batches.rewound:
                self._crew.table.forget_all(now)
                self._batches.rewound = False
            learning = self._crew.learning
            self._batches.feed.foresee(now, learning.costs.longest)
            wanted = self._batches.to_lease()
            for key, order in wanted:
                self._crew.table.add(key, order, slow=learning.is_slow(key[1]))
            outcomes = self._crew.lease(now)
            if not wanted and not outcomes:
                return
            self._learn(outcomes)

    def _answer(self) -> bool:
        """Send batches that are complete; True when some found no room."""
        unsent = False
        for answer in self._batches.settle():
            sent = self._send_batch(answer)
            if sent is Sent.FULL:
                unsent = True
            else:  # SENT, or nobody there: its next life asks again
                self._batches.sent(answer)
        for warning in self._batches.warnings:
            self._mailbox.log.warning("data changed", why=warning)
        self._batches.warnings.clear()
        return unsent

    def _send_batch(self, answer: Answer) -> Sent:
        frames = Frames()
        batch = m.Batch(
            step=answer.step,
            rank=answer.rank,
            epoch=answer.epoch,
            tokens=frames.add(answer.tokens),
            documents=frames.add(answer.documents),
            text_bytes=answer.text_bytes,
        )
        return self._mailbox.send(
            "batches", batch, to=answer.peer, frames=frames.parts, step=answer.step
        )

    # --- prompts ----------------------------------------------------------------------------------

    def _send_prompts(self, peer: str, request: m.PromptRequest) -> None:
        drawn = self._prompts.draw(request.draw, max(0, min(request.count, 64)))
        prompts = m.Prompts(
            draw=request.draw,
            texts=tuple(prompt.text for prompt in drawn),
            names=tuple(prompt.name for prompt in drawn),
        )
        self._mailbox.send("batches", prompts, to=peer, frames=[self._tokenizer])

    def _suits_prompts(self, sample: int) -> bool:
        # Parquet would double this process's memory for a handful of prompts.
        file = self._corpus.file(sample)
        is_first = not self._corpus.copies[sample]
        return is_first and file.language == "python" and file.kind != "parquet"

    def _held_out_text(self, sample: int) -> tuple[str, str] | None:
        try:
            state = read(
                State(), self._corpus.ref(sample), Options(max_sample_bytes=MAX_FILE_BYTES)
            )
        except SampleProblem:
            return None
        return self._corpus.name(sample), state.text.decode()

    # --- what people see --------------------------------------------------------------------------

    def _is_hopeless(self) -> bool:
        return self._batches.feed.exhausted and self._crew.table.unfinished() == 0

    def _why_hopeless(self) -> str:
        return (
            f"data.sources: not one sample can be used ({self._losses.words()}); the log of "
            f"{self._seat.name} names them; fix the files, name other sources, or set "
            "data.verify = false for code that need not compile"
        )

    def _show(self) -> None:
        feed, table, learning = self._batches.feed, self._crew.table, self._crew.learning
        figures = {
            "fast": len(table.fast),
            "slow": len(table.slow),
            "batches": self._batches.ahead,
            "leased": table.leased,
            "parked": table.parked,
            "workers": len(table.workers),
            "remote_workers": table.remote_workers,
            "late": table.late,
            "slow_workers": learning.split.slow,
            "handed_over": learning.handovers,
            "cutoff_ms": 1000 * min(learning.cutoff.seconds, NEVER_S / 1e6),
            "samples": self._crew.finished,
            "compile_rate": self._quality.compile_rate,
            "epoch": feed.epoch,
            "buffered_tokens": feed.buffered_tokens,
            **self._losses.gauges(),
        }
        for name, value in figures.items():
            self._mailbox.gauge(name, float(value))
        self._shelf.show()
        guests = self._crew.guests.due(self._clock.now())
        if guests is not None:
            self._mailbox.send("control", guests)
        self._mailbox.step = feed.slowest
        if not self._batches.waiting:
            self._mailbox.progress("trainers to ask for batches")
        elif not table.workers:
            self._mailbox.progress("data workers")
        else:
            self._mailbox.progress("samples from data workers")


async def _live(seat: Seat) -> int:
    connect, bind = ("control", "telemetry"), ("samples", "batches")
    async with AsyncMailbox(seat, connect=connect, bind=bind) as mailbox:
        loader = Loader(seat, mailbox)
        problem = await loader.run()
        if problem:
            mailbox.log.error("loader gives up", why=problem)
        mailbox.close(failed=problem)
        return 1 if problem else 0


def main(seat: Seat) -> int:
    """The loader's process."""
    return serve(_live(seat))
