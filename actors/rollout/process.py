"""The rollout generator: groups of completions from recent weights, scored, reported.

    refresh   a snapshot of all shards, when ours is older than `max_version_lag` steps
    ask       the loader for prompts
    write     a group of completions for each, token by token
    judge     each completion, in a child process
    report    rewards per group, with the version of the weights

Between pieces of work (a token of every sequence, a verdict, a snapshot) it rests, so that it
takes no more than `rollout.share` of a core from those who train. What is measured against that
share is processor time, which is what others miss; on a GPU it is wall-clock time.

A reward is a fact about a completion. When the machinery fails (no scorer can be started, the
weights do not come, a stop in the middle) the group is dropped and counted, never scored.
"""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from actors.loop import Mailbox
from actors.parameters import parameters
from actors.rates import Rates
from actors.rollout.judge import Judge, ScorerUnavailable
from actors.rollout.pacing import DutyCycle
from actors.rollout.scoring import Verdict
from actors.rollout.weights import Intake, load
from actors.rollout.writing import Pen, Written, begin, seeds_of
from actors.seat import Seat
from actors.topology import Topology, to_dict
from kernels.model.config import ModelConfig
from kernels.model.model import LoopLM
from protocol.clock import Clock, MonotonicClock
from protocol.messages import (
    CodesRequest,
    Metrics,
    MetricsRequest,
    PeerUp,
    PromptRequest,
    Prompts,
    RolloutReport,
)
from protocol.tensors import Attached
from protocol.transport import Received

# An unanswered question is put again after this: whoever was asked may have been replaced.
PATIENCE_S = 1.0
# How often shard 0 is asked how far the run is.
NEWS_S = 0.5
# Without a scorer or prompts nothing useful can be done; trying at once would only make noise.
PAUSE_S = 5.0
# Draws of different lives never meet: the loader answers (seed, draw), and each draw is new.
DRAWS_PER_LIFE = 1 << 20


class _Stopped(Exception):
    """A stop was asked for: what is in flight is dropped."""


def main(seat: Seat) -> int:
    """Generate and score until told to stop."""
    topology = seat.topology()
    torch.set_num_threads(seat.threads)
    shards = topology.actors.optimizer_shards
    channels = ("control", "telemetry", "batches", *(f"exchange/{k}" for k in range(shards)))
    with (
        Mailbox(seat, channels) as mailbox,
        Attached(f"trireme-{seat.run_id}-") as attached,
        Judge(lambda why: _mourn(mailbox, why), run_id=seat.run_id) as judge,
    ):
        rollout = Rollout(seat, topology, mailbox, attached, judge)
        spec = topology.rollout
        mailbox.log.info("generating", share=spec.share, group=spec.group, sandbox=judge.sandbox())
        try:
            while True:
                rollout.one_round()
        except _Stopped:
            rollout.sum_up()
            mailbox.log.info("generated", **rollout.count(), share=rollout.share())
    return 0


def _mourn(mailbox: Mailbox, why: str) -> None:
    mailbox.log.warning("the scorer died", why=why)


@dataclass(slots=True)
class _Known:
    """What the others have told."""

    newest: int = 0  # step that was committed last, as far as we know
    asked_at: float = float("-inf")
    prompts: Prompts | None = None
    tokenizer: bytes = b""


class Rollout:
    """One life of the rollout generator."""

    def __init__(
        self,
        seat: Seat,
        topology: Topology,
        mailbox: Mailbox,
        attached: Attached,
        judge: Judge,
        clock: Clock | None = None,
    ) -> None:
        self.version = -1  # of the weights in the model; -1: none yet
        self._seat, self._topology, self._spec = seat, topology, topology.rollout
        self._mailbox, self._attached, self._judge = mailbox, attached, judge
        self._clock = clock or MonotonicClock()
        self._waiting_s, self._judging_s = 0.0, 0.0
        self._cycle = DutyCycle(topology.rollout.share, self._clock.now())
        self._rested_at, self._rested_s = self._clock.now(), self._worked_s()
        self._model = LoopLM(ModelConfig.of(to_dict(topology)["model"]), "codes").to(seat.device)
        self._pen: Pen | None = None
        self._known = _Known()
        self._intake: Intake | None = None
        self._rates = Rates()
        self._reasons: Counter[str] = Counter()
        self._drawn = 0
        self._groups, self._lost_groups = 0, 0

    def one_round(self) -> None:
        """One round: fresh enough weights, prompts, completions, verdicts, reports."""
        self._ask_news()
        self._hear(0.0)
        if self.version < 0 or self._known.newest - self.version > self._spec.max_version_lag:
            self._refresh()
        prompts = self._ask_prompts()
        if not prompts.texts:
            self._pause("held-out functions: the corpus has none")
            return
        began = self._clock.now()
        written = self._write(prompts)
        trouble = self._judge_all(prompts, written, began)
        self._show()
        if trouble:
            self._mailbox.log.error("groups dropped unscored", why=trouble)
            self._pause("a scorer")

    def count(self) -> dict[str, int]:
        """What this life has done."""
        return {
            "groups": self._groups,
            "lost_groups": self._lost_groups,
            "scorer_deaths": self._judge.deaths,
            "version": self.version,
        }

    def share(self) -> float:
        """What it has really taken of a core so far."""
        return self._cycle.measured(self._clock.now())

    # --- hearing -------------------------------------------------------------------------------

    def _hear(self, timeout_s: float) -> None:
        """Take what has come. Raises `_Stopped`."""
        began = self._clock.now()
        heard = self._mailbox.receive(timeout_s)
        self._waiting_s += self._clock.now() - began
        for received in heard:
            self._take(received)
        if self._mailbox.stopping is not None:
            raise _Stopped

    def _take(self, received: Received) -> None:
        match received.message:
            case Metrics(records=records):
                steps = [record["step"] for record in records if "step" in record]
                self._known.newest = max([self._known.newest, *steps])
            case Prompts() as prompts:
                self._known.prompts = prompts
                if received.frames:
                    self._known.tokenizer = bytes(received.frames[0])
            case PeerUp(name=name) if name.startswith("optimizer_shard/"):
                if self._intake is not None:
                    self._intake.shard_up(int(name.partition("/")[2]))
            case _:
                if self._intake is not None:
                    self._intake.take(received)

    def _ask_news(self) -> None:
        """Ask how far the run is; the answer is heard whenever it comes."""
        now = self._clock.now()
        if now >= self._known.asked_at + NEWS_S:
            self._known.asked_at = now
            self._mailbox.send("exchange/0", MetricsRequest(after=self._known.newest))

    def _worked_s(self) -> float:
        """Seconds of work so far, of which only differences mean anything.

        On the CPU, the processor time of all our threads, and the time the scorer had us wait; on
        a GPU, the time in which we did not wait for messages.
        """
        if self._seat.device == "cpu":
            return time.process_time() + self._judging_s
        return self._clock.now() - self._waiting_s

    def _rest(self) -> None:
        """Between two pieces of work: leave the processor to others for as long as is owed.

        Raises `_Stopped`.
        """
        now, worked_s = self._clock.now(), self._worked_s()
        self._cycle.worked(self._rested_at, worked_s - self._rested_s)
        until = now + self._cycle.rest_s(now)
        self._mailbox.progress("its share of the processor")
        while (left_s := until - self._clock.now()) > 0:
            self._hear(left_s)
        self._mailbox.progress()
        self._rested_at, self._rested_s = self._clock.now(), self._worked_s()
        if self._mailbox.stopping is not None:
            raise _Stopped

    # --- weights -------------------------------------------------------------------------------

    def _refresh(self) -> None:
        """Take a snapshot of the newest version from every shard. Raises `_Stopped`."""
        intake = self._intake = Intake(self._topology, self._attached)
        self._mailbox.progress("a snapshot of the weights")
        while (snapshot := intake.result()) is None:
            for ask in intake.asks(self._clock.now()):
                self._mailbox.send(f"exchange/{ask.shard}", CodesRequest(version=ask.version))
            self._hear(PATIENCE_S / 4)
        self._intake = None
        self.sum_up()
        load(self._model, parameters(self._topology.model), snapshot.parameters)
        self.version = self._mailbox.step = snapshot.version
        self._known.newest = max(self._known.newest, snapshot.version)
        self._mailbox.log.info("new weights", version=snapshot.version, refused=intake.refused)
        self._rest()

    def sum_up(self) -> None:
        """Log how the version that is about to go has scored."""
        newest = self._rates.newest()
        if newest is None or newest[0] != self.version:
            return
        rate = newest[1]
        self._mailbox.log.info(
            "version scored",
            version=self.version,
            completions=rate.total,
            compile_rate=rate.value,
            low=rate.low,
            high=rate.high,
            reasons=dict(self._reasons),
        )
        self._reasons.clear()

    # --- groups --------------------------------------------------------------------------------

    def _ask_prompts(self) -> Prompts:
        """The prompts of the next draw. Raises `_Stopped`."""
        rollouts = max(1, self._topology.actors.rollouts)
        life = self._seat.incarnation * DRAWS_PER_LIFE
        draw = life + self._drawn * rollouts + self._seat.index
        self._drawn += 1
        request = PromptRequest(count=self._spec.prompts, draw=draw)
        self._known.prompts = None
        self._mailbox.progress("prompts from the loader")
        asked_at = float("-inf")
        while (prompts := self._known.prompts) is None or prompts.draw != draw:
            if self._clock.now() >= asked_at + PATIENCE_S:
                asked_at = self._clock.now()
                self._mailbox.send("batches", request)
            self._hear(PATIENCE_S / 4)
        self._mailbox.progress()
        if self._pen is None:
            self._pen = Pen(self._known.tokenizer)
        return prompts

    def _write(self, prompts: Prompts) -> list[Written]:
        """Completions for all prompts, those of one prompt side by side. Raises `_Stopped`."""
        assert self._pen is not None
        count = len(prompts.texts) * self._spec.group
        seeds = seeds_of(self._topology.seed, self.version, prompts.draw, count)
        generation = begin(self._model, self._pen, prompts.texts, self._spec, seeds)
        self._rest()
        while generation.advance():
            self._rest()
        return [self._pen.write(done.tokens) for done in generation.completions()]

    def _judge_all(self, prompts: Prompts, written: Sequence[Written], began: float) -> str:
        """Score every group and report it; why no scorer could be had, or "". Raises `_Stopped`."""
        size = self._spec.group
        for index, (prompt, name) in enumerate(zip(prompts.texts, prompts.names, strict=True)):
            group = written[index * size : (index + 1) * size]
            try:
                verdicts = [self._judge_one(prompt, one) for one in group]
            except ScorerUnavailable as error:
                self._lost_groups += len(prompts.texts) - index
                return str(error)
            rewards = tuple(verdict.reward for verdict in verdicts)
            self._groups += 1
            self._rates.add(self.version, int(sum(rewards)), len(rewards))
            self._reasons.update(verdict.reason for verdict in verdicts)
            self._note_deaths(prompts.draw, name, group, verdicts)
            report = RolloutReport(
                version=self.version,
                draw=prompts.draw,
                prompt=name,
                rewards=rewards,
                compiled=sum(verdict.compiled for verdict in verdicts),
                completions=len(rewards),
                tokens=sum(one.tokens for one in group),
                seconds=self._clock.now() - began,
            )
            self._mailbox.send("telemetry", report)
        return ""

    def _judge_one(self, prompt: str, one: Written) -> Verdict:
        """Raises `ScorerUnavailable`, `_Stopped`."""
        self._rest()
        began = self._clock.now()
        verdict = self._judge.score(prompt, one.text, finished=one.finished)
        self._judging_s += self._clock.now() - began
        return verdict

    def _note_deaths(
        self, draw: int, name: str, group: Sequence[Written], verdicts: Sequence[Verdict]
    ) -> None:
        for one, verdict in zip(group, verdicts, strict=True):
            if verdict.reason == "scorer died":
                self._mailbox.log.error(
                    "a completion killed its scorer twice: it scores zero",
                    prompt=name,
                    draw=draw,
                    completion=one.text,
                    why=verdict.detail,
                )

    def _pause(self, waiting_for: str) -> None:
        """There is nothing useful to do for a while. Raises `_Stopped`."""
        self._mailbox.progress(waiting_for)
        until = self._clock.now() + PAUSE_S
        while (left_s := until - self._clock.now()) > 0:
            self._hear(left_s)
        self._mailbox.progress()

    def _show(self) -> None:
        """Gauges for `status`."""
        gauge = self._mailbox.gauge
        gauge("version", float(self.version))
        gauge("lag", float(max(0, self._known.newest - self.version)))
        gauge("share", self.share())
        for name, value in self.count().items():
            gauge(name, float(value))
        if (newest := self._rates.newest()) is not None:
            rate = newest[1]
            gauge("compile_rate", rate.value)
            gauge("compile_rate_low", rate.low)
            gauge("compile_rate_high", rate.high)
            gauge("completions", float(rate.total))
