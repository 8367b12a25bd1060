"""`run.py eval`: how a run's newest checkpoint does on files it was never trained on."""

import json
from pathlib import Path
from typing import Any

import click

from actors.commands import Failed, Refused
from actors.commands.status import open_run
from actors.rundir import RunDir


@click.command(name="eval")
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
@click.option(
    "--tokens",
    type=click.IntRange(min=1),
    default=50_000,
    show_default=True,
    help="Held-out tokens to measure the loss on, at most.",
)
@click.option(
    "--prompts",
    type=click.IntRange(min=0),
    default=16,
    show_default=True,
    help="Prompts to complete, each in a group of rollout.group; 0: no compile rate.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def command(run_dir: Path | None, tokens: int, prompts: int, as_json: bool) -> None:
    """Measure loss, bits per byte and compile rate on held-out files."""
    document = _measure(open_run(run_dir), tokens, prompts)
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(_for_people(document))


def _measure(run: RunDir, tokens: int, prompts: int) -> dict[str, Any]:
    from actors import evaluation, trained  # torch comes with them
    from actors.data.sources import SourceError, list_corpus
    from actors.rollout.judge import Judge, ScorerUnavailable
    from actors.topology import TopologyError

    try:
        found = trained.newest(run, _warn)
        corpus, _ = list_corpus(found.topology.data.sources)
        rows = evaluation.held_out_rows(found, corpus, run.tokenizer.read_bytes(), tokens)
        document: dict[str, Any] = {
            "run": str(run.path),
            "step": found.step,
            "weights_digest": found.weights_digest,
            "held_out": evaluation.losses(found, rows),
        }
        if prompts:
            with Judge(lambda why: _warn(f"the scorer died: {why}")) as judge:
                document["rollouts"] = evaluation.compile_rate(found, corpus, prompts, judge)
    except TopologyError as error:
        raise Refused(str(error)) from error
    except (trained.NothingTrained, SourceError, ScorerUnavailable) as error:
        raise Failed(str(error)) from error
    return document


def _for_people(document: dict[str, Any]) -> str:
    held = document["held_out"]
    lines = [f"step {document['step']} of {document['run']}"]
    if held["loss"] is None:
        lines.append("no held-out text: data.held_out_share leaves less than one row of it")
    else:
        loops = ", ".join(f"{loss:.3f}" for loss in held["loss_by_loop"])
        lines += [
            f"held out       {held['tokens']:,} tokens of {held['files']} files",
            f"loss           {held['loss']:.4f} nats per token (by loop: {loops})",
            f"bits per byte  {held['bits_per_byte']:.4f}",
        ]
    rate = document.get("rollouts")
    if rate is not None and rate["compile_rate"] is None:
        lines.append("compile rate   no function in the held-out files to cut prompts from")
    elif rate is not None:
        reasons = ", ".join(f"{n} {reason}" for reason, n in sorted(rate["reasons"].items()))
        lines.append(
            f"compile rate   {rate['compile_rate']:.1%} of {rate['completions']} "
            f"(95 %: {rate['low']:.1%} to {rate['high']:.1%}; {reasons})"
        )
    return "\n".join(lines)


def _warn(text: str) -> None:
    click.echo(text, err=True)
