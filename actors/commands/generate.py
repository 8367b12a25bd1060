"""`run.py generate`: what a run's newest checkpoint makes of a prompt."""

import json
import sys
from pathlib import Path
from typing import Any

import click

from actors.commands import Failed, Refused
from actors.commands.status import open_run
from actors.rundir import RunDir


@click.command()
@click.option(
    "--run", "run_dir", type=click.Path(path_type=Path), metavar="DIR", help="[runs/latest]"
)
@click.option("--prompt", required=True, help="Text to go on from; - reads it from stdin.")
@click.option(
    "--max-new-tokens",
    type=click.IntRange(min=1),
    default=64,
    show_default=True,
    help="Where to stop at the latest.",
)
@click.option(
    "--temperature",
    type=click.FloatRange(min=0.0),
    default=0.8,
    show_default=True,
    help="0: always the likeliest token.",
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
def generate(
    run_dir: Path | None,
    prompt: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    as_json: bool,
) -> None:
    """Go on from a prompt with the newest checkpoint of a run."""
    if prompt == "-":
        prompt = sys.stdin.read()
    document = _complete(open_run(run_dir), prompt, max_new_tokens, temperature, seed)
    if as_json:
        click.echo(json.dumps(document, indent=1))
    else:
        click.echo(document["prompt"] + document["completion"])


def _complete(
    run: RunDir, prompt: str, max_new_tokens: int, temperature: float, seed: int
) -> dict[str, Any]:
    from actors import trained  # torch comes with it
    from actors.topology import TopologyError
    from kernels.sampling.generate import Sampling
    from kernels.sampling.generate import generate as sample

    try:
        found = trained.newest(run, _warn)
    except TopologyError as error:
        raise Refused(str(error)) from error
    except trained.NothingTrained as error:
        raise Failed(str(error)) from error
    room = found.topology.model.seq_len - max_new_tokens
    if room < 1:
        raise click.BadParameter(
            f"{max_new_tokens} tokens do not fit: this model saw {room + max_new_tokens} tokens "
            "at a time in training, and the prompt needs at least one of them",
            param_hint="'--max-new-tokens'",
        )
    tokens = found.pen.read(prompt, room)
    if len(tokens) == room:
        _warn(f"only the last {room - 1} tokens of the prompt were read: there is no room for more")
    (completion,) = sample(
        found.model,
        [tokens],
        seeds=[seed],
        max_new_tokens=max_new_tokens,
        sampling=Sampling(temperature=temperature),
        eos=found.pen.eos,
    )
    written = found.pen.write(completion.tokens)
    return {
        "run": str(run.path),
        "step": found.step,
        "weights_digest": found.weights_digest,
        "prompt": prompt,
        "completion": written.text,
        "tokens": written.tokens,
        "finished": written.finished,
        "log_prob": sum(completion.log_probs),
        "temperature": temperature,
        "seed": seed,
    }


def _warn(text: str) -> None:
    click.echo(text, err=True)
