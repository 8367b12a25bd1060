"""The report as one page that needs nothing else: verdict, figures, and a picture of the time line.

One lane for each actor. A lane is solid while a life of it is there; a mark shows a fault, and the
red stretch behind it lasts until the successor's first message. Committed steps are ticks at the
bottom: where they are sparse, faults cost time.
"""

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from actors.chaos.kinds import BY_NAME

_WIDTH, _LEFT, _LANE, _TOP = 1180, 130, 22, 34
_MOST_SHOWN_STEPS = 2000

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2rem auto; max-width: 1220px; padding: 0 1rem;
       color: #1c2430; background: #fff }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2rem }
table { border-collapse: collapse; width: 100% } th, td { text-align: left; padding: .25rem .6rem;
       border-bottom: 1px solid #dde3ea; vertical-align: top } th { font-weight: 600 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums }
.yes { color: #0a6b3a; font-weight: 600 } .no { color: #b3261e; font-weight: 600 }
.wide { overflow-x: auto } svg { background: #f7f9fb; border: 1px solid #dde3ea }
@media (prefers-color-scheme: dark) { body { background: #12161c; color: #dfe6ee }
  th, td { border-color: #2b3440 } svg { background: #f7f9fb } .yes { color: #58c98b }
  .no { color: #ff8a80 } }
"""


def page(report: Mapping[str, Any], events: Sequence[Mapping[str, Any]]) -> str:
    """The whole document."""
    verdict = "passed" if report["passed"] else "FAILED"
    asked = report["asked"]
    title = f"Chaos: seed {asked['seed']}, {asked['kills']} faults in {asked['steps']} steps"
    parts = [
        f"<h1>{_text(title)}: <span class='{'yes' if report['passed'] else 'no'}'>{verdict}"
        "</span></h1>",
        f"<p>{_text(report['topology'])}, {_text(report['when'])}. The same run was done twice: "
        "once in peace, once like this.</p>",
        "<h2>What must hold</h2>",
        _findings(report["findings"]),
        "<h2>Time line</h2>",
        f"<div class='wide'>{timeline(report['faults'], events)}</div>",
        "<h2>Figures</h2>",
        _figures(report["figures"], report.get("torchrun")),
        "<h2>Faults</h2>",
        _faults(report["faults"]),
    ]
    if report["not_possible"]:
        parts += ["<h2>What this machine does not allow</h2>", _refused(report["not_possible"])]
    body = "\n".join(parts)
    return (
        "<!doctype html>\n<html lang='en'><head><meta charset='utf-8'>"
        f"<meta name='viewport' content='width=device-width'><title>{_text(title)}</title>"
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


# --- Tables ---------------------------------------------------------------------------------------


def _findings(findings: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        f"<tr><td>{_text(found['name'])}</td><td class='{'yes' if found['ok'] else 'no'}'>"
        f"{'yes' if found['ok'] else 'NO'}</td><td>{_text(found['detail'])}</td></tr>"
        for found in findings
    ]
    return _table(("", "holds", ""), rows)


def _figures(figures: Mapping[str, Any], torchrun: Mapping[str, Any] | None) -> str:
    named = {
        "a sudden death is noticed": figures["detection"]["sudden_death"],
        "of that, until the killed process has ended": figures["detection"]["until_it_has_ended"],
        "a frozen process, or one whose interpreter is held, is noticed": figures["detection"][
            "frozen_or_lock_held"
        ],
        "a hang is noticed": figures["detection"]["hang"],
        "first message after a death, without torch": figures["first_message_after_death"][
            "without_torch"
        ],
        "first message after a death, trainer or shard": figures["first_message_after_death"][
            "trainer_and_shard"
        ],
        "first message after a death, supervisor": figures["first_message_after_death"][
            "supervisor"
        ],
        "next step after any fault": figures["next_step_after_fault"],
    }
    if torchrun:
        named["torchrun: work goes on after SIGKILL to a worker"] = torchrun.get("recovery")
    rows: list[str] = []
    for name, spread in named.items():
        cells = ("count", "min_s", "median_s", "max_s")
        values = ["" if spread is None else _number(spread[cell]) for cell in cells]
        rows.append(_row([_text(name)], values))
    kept = figures["throughput_kept"]
    shown = "" if kept is None else f"{100 * kept:.0f} %"
    times = f"{figures['disturbed_s']:g} s instead of {figures['undisturbed_s']:g} s"
    note = f"<p>Throughput kept: {shown} ({times}); {figures['launches']} launches.</p>"
    head = ("", "count", "min s", "median s", "max s")
    return note + _table(head, rows, numbers=4)


def _faults(faults: Iterable[Mapping[str, Any]]) -> str:
    rows = [
        _row(
            [
                _text(f"{fault['number']}"),
                _text(BY_NAME[fault["kind"]].what),
                _text(fault["target"] or "the run"),
                _text(fault.get("how") or ""),
            ],
            [_number(fault.get(name)) for name in ("t", "detected_s", "useful_s", "step_s")],
        )
        for fault in faults
    ]
    head = ("", "what", "whom", "", "at s", "noticed after s", "useful after s", "step after s")
    return _table(head, rows, numbers=4)


def _refused(reasons: Mapping[str, str]) -> str:
    rows = [_row([_text(BY_NAME[kind].what), _text(why)], []) for kind, why in reasons.items()]
    return _table(("fault", "why not"), rows)


def _table(head: Sequence[str], rows: Iterable[str], *, numbers: int = 0) -> str:
    first = len(head) - numbers
    cells = [
        f"<th{' class=number' if at >= first else ''}>{_text(name)}</th>"
        for at, name in enumerate(head)
    ]
    return f"<table><tr>{''.join(cells)}</tr>\n" + "\n".join(rows) + "</table>"


def _row(words: Iterable[str], numbers: Iterable[str]) -> str:
    cells = [f"<td>{word}</td>" for word in words]
    cells += [f"<td class='number'>{number}</td>" for number in numbers]
    return f"<tr>{''.join(cells)}</tr>"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value}" if isinstance(value, int) else f"{value:.3f}"


def _text(text: object) -> str:
    return html.escape(str(text))


# --- The picture ----------------------------------------------------------------------------------


def timeline(faults: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> str:
    """The picture, as SVG."""
    over = max((event["t"] for event in events), default=1.0) or 1.0
    names = ["", *sorted({event["name"] for event in events if event["event"] == "life"})]
    lane = {name: _TOP + number * _LANE for number, name in enumerate(names)}
    bottom = _TOP + len(names) * _LANE

    def x(t: float) -> float:
        return round(_LEFT + (_WIDTH - _LEFT - 20) * t / over, 1)

    parts = [_seconds(over, x, bottom)]
    for name, y in lane.items():
        parts.append(f"<text x='6' y='{y + 4}' font-size='12'>{_text(name or 'the run')}</text>")
    for name, since, until in _lives(events, over):
        y = lane[name]
        parts.append(
            f"<line x1='{x(since)}' y1='{y}' x2='{x(until)}' y2='{y}' stroke='#8fb4d9' "
            "stroke-width='5'/>"
        )
    parts += [_mark(fault, lane.get(fault["target"], lane[""]), x) for fault in faults]
    steps = [event["t"] for event in events if event["event"] == "step"][:_MOST_SHOWN_STEPS]
    ticks = "".join(f"M{x(t)} {bottom + 4}v10" for t in steps)
    parts.append(f"<path d='{ticks}' stroke='#0a6b3a' stroke-width='1'/>")
    parts.append(f"<text x='6' y='{bottom + 13}' font-size='12'>steps</text>")
    height = bottom + 24
    return (
        f"<svg width='{_WIDTH}' height='{height}' viewBox='0 0 {_WIDTH} {height}' role='img' "
        "fill='#1c2430' aria-label='Lives of all actors over time, with faults marked'>"
        + "\n".join(parts)
        + "</svg>"
    )


def _lives(events: Sequence[Mapping[str, Any]], over: float) -> Iterable[tuple[str, float, float]]:
    """Name, beginning and end of every life."""
    living: dict[str, float] = {}
    for event in events:
        name = event.get("name", "")
        if event["event"] == "death" and name in living:
            yield name, living.pop(name), event["t"]
        elif event["event"] == "life":
            living[name] = event["t"]
    for name, since in living.items():
        yield name, since, over


def _mark(fault: Mapping[str, Any], y: float, x: Any) -> str:
    at = fault["t"]
    noticed, useful = fault.get("detected_s"), fault.get("useful_s") or fault.get("step_s")
    words = f"{fault['number']}: {BY_NAME[fault['kind']].what}"
    if noticed is not None:
        words += f"; noticed after {noticed:.3f} s"
    if useful is not None:
        words += f"; work went on after {useful:.3f} s"
    until = x(at + useful) if useful is not None else x(at)
    stretch = (
        f"<line x1='{x(at)}' y1='{y}' x2='{until}' y2='{y}' stroke='#d2453b' stroke-width='5'/>"
    )
    seen = ""
    if noticed is not None:
        at_x = x(at + noticed)
        seen = f"<line x1='{at_x}' y1='{y - 6}' x2='{at_x}' y2='{y + 6}' stroke='#1c2430'/>"
    mark = f"<circle cx='{x(at)}' cy='{y}' r='4' fill='#8c1d18'/>"
    return f"<g><title>{_text(words)}</title>{stretch}{seen}{mark}</g>"


def _seconds(over: float, x: Any, bottom: float) -> str:
    """A grid of round seconds."""
    every = next(
        (s for s in (1, 2, 5, 10, 20, 60, 120, 300, 600, 1800, 3600) if over / s <= 14), 7200
    )
    parts: list[str] = []
    for number in range(int(over // every) + 1):
        at = x(number * every)
        parts.append(f"<line x1='{at}' y1='20' x2='{at}' y2='{bottom}' stroke='#dde3ea'/>")
        parts.append(f"<text x='{at}' y='14' font-size='11'>{number * every} s</text>")
    return "\n".join(parts)
