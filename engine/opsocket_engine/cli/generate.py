"""`opsocket generate`: text from a model, on any backend."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator, Sequence
from typing import IO, TYPE_CHECKING, Any

import click

from opsocket.cli.common import json_option, open_session, print_json, require_backend
from opsocket_engine.cli.common import engine_options, load_engine, placement, placement_lines, precision

if TYPE_CHECKING:
    from opsocket.runtime import RuntimeConfig
    from opsocket_engine.engine import Engine, Output
    from opsocket_engine.locate import ModelFiles
    from opsocket_engine.sampling import SamplingParams
    from opsocket_engine.tokenizer import Tokenizer

INTERRUPTED = 130


@click.command()
@click.argument("prompts", nargs=-1, metavar="[PROMPT]...")
@click.option("--prompt-file", "files", type=click.File(encoding="utf-8"), multiple=True, help="A prompt; - is stdin.")
@engine_options
@click.option("--chat/--no-chat", default=None, help="Apply the model's chat template (default: where it has one).")
@click.option("--system", help="The chat's system message.")
@click.option("--max-tokens", type=int, default=256, show_default=True, help="Tokens to generate at most.")
@click.option("--temperature", type=float, default=0.0, show_default=True, help="0 takes the most probable token.")
@click.option("--top-k", type=int, default=0, help="Sample among the k most probable tokens; 0: all.")
@click.option("--top-p", type=float, default=1.0, help="Sample within this share of the probability.")
@click.option("--min-p", type=float, default=0.0, help="Leave out tokens less probable than this share of the top one.")
@click.option("--repetition-penalty", type=float, default=1.0, help="1: none.")
@click.option("--presence-penalty", type=float, default=0.0, help="0: none.")
@click.option("--frequency-penalty", type=float, default=0.0, help="0: none.")
@click.option("--seed", type=int, help="Repeats a sampled text.")
@click.option("--samples", "n", type=int, default=1, help="Texts for each prompt.")
@click.option("--stop", multiple=True, help="Text at which to stop; repeatable.")
@click.option("--ignore-eos", is_flag=True, help="Go on past the model's end token.")
@click.option("--placement", "show_placement", is_flag=True, help="Show on stderr which provider serves what, and why.")
@json_option
def command(
    config: RuntimeConfig,
    model: str,
    prompts: tuple[str, ...],
    files: tuple[IO[str], ...],
    chat: bool | None,
    system: str | None,
    max_tokens: int,
    show_placement: bool,
    as_json: bool,
    stop: tuple[str, ...],
    **sampling: Any,
) -> None:
    """Generate text from a prompt, or from several at once.

    Text goes to stdout as it comes, statistics to stderr. Without a PROMPT, standard input is the prompt.
    """
    selection = require_backend(config)
    if not (prompts or files):
        if sys.stdin.isatty():
            raise click.UsageError("give a PROMPT, --prompt-file FILE, or a prompt on standard input")
        files = (sys.stdin,)
    from opsocket_engine.checkpoint import open_checkpoint
    from opsocket_engine.locate import locate
    from opsocket_engine.options import EngineOptions
    from opsocket_engine.sampling import SamplingParams
    from opsocket_engine.tokenizer import load_tokenizer

    start = time.perf_counter()
    params = SamplingParams(max_tokens=max_tokens, stop=stop, **sampling)
    located = locate(model)
    checkpoint, tokenizer = open_checkpoint(located), load_tokenizer(located)
    texts = [*prompts, *(file.read().removesuffix("\n") for file in files)]
    ids = [_encode(located, tokenizer, text, chat, system) for text in texts]
    room = max(map(len, ids)) + max_tokens
    options = EngineOptions.of(config.engine, max_batch=min(len(ids) * params.n, 16), max_context=room)
    with (
        open_session(config, selection) as session,
        load_engine(session, checkpoint, tokenizer, options, located.name) as engine,
    ):
        placed = placement(session, engine.requests.distinct())
        if show_placement:
            click.echo("\n".join(placement_lines(placed)), err=True)
        loaded = time.perf_counter()
        outputs, interrupted = _run(engine, ids, params, quiet=as_json)
        report = {
            "model": located.name,
            "device": str(session.device),
            "dtype": options.dtype,
            "activations": options.activations,
            "numerics": options.numerics,
            "kv_format": options.kv_format,
            "results": [_result(key, ids[key[0]], samples) for key, samples in sorted(outputs.items())],
            "interrupted": interrupted,
            "load_seconds": loaded - start,
            "stats": engine.stats().to_json(),
            "placement": [p.to_json() for p in placed],
        }
        if as_json:
            print_json(report)
        else:
            click.echo(_summary(report), err=True)
    if interrupted:
        sys.exit(INTERRUPTED)


def _encode(files: ModelFiles, tokenizer: Tokenizer, text: str, chat: bool | None, system: str | None) -> list[int]:
    """The prompt's tokens: as a chat's first message where the model has a template, else as plain text."""
    from opsocket.operators import ContractError
    from opsocket_engine.chat import load_chat_template, render_chat

    template = None if chat is False else load_chat_template(files)
    if template is None:
        for flag, value in (("--chat", chat), ("--system", system)):
            if value:
                raise ContractError(flag, "a model with a chat template, and no --no-chat", files.name)
        return tokenizer.encode(text)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages.append({"role": "user", "content": text})
    bos, eos = tokenizer.bos_token or "", tokenizer.eos_token or ""
    rendered = render_chat(template, messages, bos_token=bos, eos_token=eos)
    return tokenizer.encode(rendered, add_special=False, parse_special=True)


def _run(
    engine: Engine, prompts: Sequence[list[int]], params: SamplingParams, *, quiet: bool
) -> tuple[dict[tuple[int, int], list[Output]], bool]:
    """Generate and print. One text streams; several come each when it is finished, since they grow side by side."""
    single = len(prompts) * params.n == 1
    outputs: dict[tuple[int, int], list[Output]] = {}
    with _Interrupt() as interrupt:
        for output in engine.stream(prompts, params):
            key = output.request, output.sample
            outputs.setdefault(key, []).append(output)
            if single and not quiet:
                click.echo(output.text, nl=output.finish_reason is not None)
            elif output.finish_reason and not quiet:
                name = f"{key[0] + 1}" if params.n == 1 else f"{key[0] + 1}.{key[1] + 1}"
                click.echo(f"[{name}] {''.join(o.text for o in outputs[key])}")
            if interrupt.came:
                break
    if interrupt.came:
        click.echo(err=True)
    return outputs, interrupt.came


class _Interrupt:
    """Takes note of the first Ctrl-C instead of raising where Python happens to be: an exception that falls into a
    finalizer is printed and lost. The second one raises."""

    came = False

    def __enter__(self) -> _Interrupt:
        self._before = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _note(self, number: int, frame: object) -> None:
        self.came = True
        signal.signal(signal.SIGINT, self._before)


def _result(key: tuple[int, int], prompt: list[int], outputs: list[Output]) -> dict[str, Any]:
    return {
        "prompt": key[0],
        "sample": key[1],
        "prompt_tokens": len(prompt),
        "text": "".join(output.text for output in outputs),
        "token_ids": [output.token_id for output in outputs],
        "finish_reason": outputs[-1].finish_reason,
    }


def _summary(report: dict[str, Any]) -> str:
    return "\n".join(_summary_lines(report, report["stats"]))


def _summary_lines(report: dict[str, Any], stats: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{report['model']} on {report['device']}: prompt {stats['prompt_tokens']} tokens, "
        f"{stats['prompt_tokens_per_second']:.1f}/s; decode {stats['decode_tokens']} tokens, "
        f"{stats['decode_tokens_per_second']:.1f}/s, "
        f"{stats['captured_steps']} of {stats['steps']} steps captured; loaded in {report['load_seconds']:.2f} s"
    )
    yield (
        f"activations: {precision(report)}; cache: {report['kv_format']}, "
        f"peak {stats['peak_blocks']} of {stats['num_blocks']} blocks of {stats['block_size']} tokens, "
        f"{stats['cache_bytes'] / 1e6:.1f} MB; {stats['shared_tokens']} tokens shared, "
        f"{stats['preemptions']} preemptions"
    )
