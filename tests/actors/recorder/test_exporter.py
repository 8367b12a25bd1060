"""A port in use is a warning; what a figure is called does not change by accident."""

import json
import re
import socket
from pathlib import Path
from typing import Any

from actors.rates import wilson
from actors.recorder.exporter import Exporter, families
from actors.recorder.recording import ActorSeen, Figures, StatusSeen

DASHBOARD = Path(__file__).parents[3] / "deploy" / "grafana" / "trireme.json"
METRICS = {
    "step": 7,
    "loss": 2.5,
    "bits_per_byte": 1.25,
    "tokens": 1000,
    "lr": 0.02,
    "step_s": 0.5,
    "data_wait_s": 0.0,
    "up_bytes": 10,
    "down_bytes": 5,
    "flips": 3,
    "weights_digest": "ab",
}
FIGURES = Figures(
    metrics=METRICS,
    status=StatusSeen([ActorSeen("loader", "loader", "lost", 1, 5, 0.5)], {"fast": 1.0}),
    levels={"info": 3},
    rollout=(4, wilson(1, 2)),
    counts={"tokens": 9},
)


class Heard:
    def __init__(self) -> None:
        self.events: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **fields: Any) -> None:
        self.events.append((event, fields))

    warning = info


def exposed(figures: Figures) -> set[str]:
    return {
        family.name + ("_total" if family.kind == "counter" else "") for family in families(figures)
    }


def test_a_busy_port_is_a_warning_and_nothing_more():
    heard = Heard()
    with socket.socket() as busy:
        busy.bind(("127.0.0.1", 0))
        busy.listen()
        exporter = Exporter.open(busy.getsockname()[1], heard)
    assert not exporter.on
    ((event, fields),) = heard.events
    assert event == "no Prometheus endpoint"
    assert fields["why"] == "Address already in use"
    exporter.close()


def test_without_a_port_nothing_listens():
    heard = Heard()
    assert not Exporter.open(0, heard).on
    assert heard.events == []


def test_what_is_not_known_yet_is_not_shown():
    names = exposed(Figures(metrics={"loss": None, "step": True}))
    assert "trireme_loss_nats" not in names
    assert "trireme_step" not in names
    assert "trireme_compile_rate" not in names
    assert "trireme_telemetry_lost_total" in names


def test_an_actor_that_is_lost_is_not_up():
    (up,) = [family for family in families(FIGURES) if family.name == "trireme_actor_up"]
    assert up.values == [(("loader", "loader"), 0.0)]


def test_the_dashboard_asks_only_for_figures_that_exist():
    text = DASHBOARD.read_text()
    asked = set(re.findall(r"\btrireme_[a-z_]+", " ".join(_expressions(json.loads(text)))))
    assert asked
    assert asked <= exposed(FIGURES)


def _expressions(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["expr"]] if isinstance(node.get("expr"), str) else []
        return own + [found for value in node.values() for found in _expressions(value)]
    if isinstance(node, list):
        return [found for value in node for found in _expressions(value)]
    return []
