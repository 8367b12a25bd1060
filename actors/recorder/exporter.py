"""The Prometheus endpoint, on 127.0.0.1 only, when `recorder.prometheus_port` asks for one.

`prometheus_client` serves from a thread of its own; it reads a snapshot (`Figures`) that the
recorder replaces as a whole. What a figure is called is part of the product: dashboards
(`deploy/grafana`) and alerts rely on it.
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from actors.recorder.recording import ActorSeen, Figures, StatusSeen

if TYPE_CHECKING:
    from threading import Thread
    from wsgiref.simple_server import WSGIServer

HOST = "127.0.0.1"


class Log(Protocol):
    """As much of a logger as is needed here."""

    def info(self, event: str, **fields: Any) -> object:
        """Log an event."""
        ...

    def warning(self, event: str, **fields: Any) -> object:
        """Log a warning."""
        ...


class Family(NamedTuple):
    """One named figure with its values by label."""

    name: str
    kind: str  # "gauge" or "counter"; counters get the suffix _total
    help: str
    labels: tuple[str, ...]
    values: list[tuple[tuple[str, ...], float]]


# Figure, key of a metrics.jsonl record, what it is.
_STEP_GAUGES = (
    ("trireme_step", "step", "Newest committed step"),
    ("trireme_loss_nats", "loss", "Training loss per token, in nats"),
    ("trireme_bits_per_byte", "bits_per_byte", "Training loss in bits per byte of text"),
    ("trireme_learning_rate", "lr", "Learning rate of the matrices"),
    ("trireme_step_seconds", "step_s", "Wall clock of the newest step"),
    ("trireme_data_wait_seconds", "data_wait_s", "Of which trainers waited for data"),
    ("trireme_step_up_bytes", "up_bytes", "Gradient bytes of the newest step"),
    ("trireme_step_down_bytes", "down_bytes", "Update bytes of the newest step"),
    ("trireme_flips", "flips", "Ternary codes that flipped in the newest step"),
)
_COUNTERS = (
    ("trireme_tokens", "tokens", "Tokens trained on"),
    ("trireme_up_bytes", "up_bytes", "Gradient bytes sent to shards"),
    ("trireme_down_bytes", "down_bytes", "Update bytes sent to trainers"),
    ("trireme_completions", "completions", "Completions scored"),
    ("trireme_telemetry_lost", "telemetry_lost", "Log records and reports that never arrived"),
    ("trireme_lines_lost", "lines_lost", "Lines that the disk refused"),
    ("trireme_steps_missed", "steps_missed", "Steps without a record in metrics.jsonl"),
)


def families(figures: Figures) -> Iterator[Family]:
    """Every figure there is at this moment. Pure."""
    metrics = figures.metrics
    for name, key, text in _STEP_GAUGES:
        if (value := _number(metrics.get(key))) is not None:
            yield Family(name, "gauge", text, (), [((), value)])
    tokens, seconds = _number(metrics.get("tokens")), _number(metrics.get("step_s"))
    if tokens is not None and seconds:
        text = "Tokens per second of the newest step"
        yield Family("trireme_tokens_per_second", "gauge", text, (), [((), tokens / seconds)])
    for name, key, text in _COUNTERS:
        yield Family(name, "counter", text, (), [((), float(figures.counts.get(key, 0)))])
    levels = [((level,), float(n)) for level, n in figures.levels.items()]
    yield Family("trireme_log_records", "counter", "Log records by level", ("level",), levels)
    if figures.rollout is not None:
        version, rate = figures.rollout
        text = "Version of the weights whose completions were scored last"
        yield Family("trireme_rollout_version", "gauge", text, (), [((), float(version))])
        bounds = [(("value",), rate.value), (("low",), rate.low), (("high",), rate.high)]
        text = "Share of completions that compile and say something, with its 95 % interval"
        yield Family("trireme_compile_rate", "gauge", text, ("bound",), bounds)
    yield from _of_status(figures.status)


def _of_status(status: StatusSeen) -> Iterator[Family]:
    """What the supervisor knows of queues and actors."""
    lengths = [((name,), float(n)) for name, n in status.queues.items() if n is not None]
    yield Family("trireme_queue_length", "gauge", "Samples, batches waiting", ("queue",), lengths)
    shown: tuple[tuple[str, str, str, Callable[[ActorSeen], float | None]], ...] = (
        ("trireme_actor_up", "gauge", "1 when running", lambda a: float(a.state == "running")),
        ("trireme_actor_restarts", "counter", "Times replaced", lambda a: a.restarts),
        ("trireme_actor_rss_bytes", "gauge", "Resident memory", lambda a: a.rss_bytes),
        (
            "trireme_actor_heartbeat_age_seconds",
            "gauge",
            "Time since the last heartbeat",
            lambda a: a.heartbeat_age_s,
        ),
    )
    for name, kind, text, value_of in shown:
        values = [
            ((actor.name, actor.role), float(value))
            for actor in status.actors
            if (value := value_of(actor)) is not None
        ]
        yield Family(name, kind, text, ("actor", "role"), values)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)


class Exporter:
    """The endpoint, or nothing at all when it is off."""

    def __init__(self) -> None:
        self._figures = Figures()
        self._server: WSGIServer | None = None
        self._thread: Thread | None = None

    @classmethod
    def open(cls, port: int, log: Log) -> "Exporter":
        """Listen on `port` of this host; 0: off. A port in use is a warning, and off."""
        exporter = cls()
        if port:
            try:
                exporter._listen(port)
            except OSError as error:
                why = error.strerror or str(error)
                log.warning(
                    "no Prometheus endpoint",
                    port=port,
                    why=why,
                    hint="change recorder.prometheus_port",
                )
            else:
                log.info("Prometheus endpoint", url=f"http://{HOST}:{port}/metrics")
        return exporter

    @property
    def on(self) -> bool:
        """Whether somebody may look."""
        return self._server is not None

    def show(self, figures: Figures) -> None:
        """What to answer from now on."""
        self._figures = figures

    def collect(self) -> Iterator[Any]:
        """The figures as `prometheus_client` wants them; called by its thread."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        kinds = {"gauge": GaugeMetricFamily, "counter": CounterMetricFamily}
        for name, kind, text, labels, values in families(self._figures):
            family = kinds[kind](name, text, labels=labels)
            for label_values, value in values:
                family.add_metric(list(label_values), value)
            yield family

    def close(self) -> None:
        """Stop listening."""
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join()
            self._server = self._thread = None

    def _listen(self, port: int) -> None:
        # Imported only when wanted: it takes memory that most recorders need not have.
        from prometheus_client import CollectorRegistry, start_http_server

        registry = CollectorRegistry()
        registry.register(self)
        self._server, self._thread = start_http_server(port, addr=HOST, registry=registry)
