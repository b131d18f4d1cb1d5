"""`quantcore perplexity`: how well a model predicts a text, alone or beside its base."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from quantcore.atomic import refuse_overwriting
from quantcore.cli._options import add_device, whole_number
from quantcore.cli._terminal import add_json, human_seconds, note, note_context, progress_bar
from quantcore.cli._text import read_text
from quantcore.errors import ShortText
from quantcore.evaluate.activations import ACTIVATIONS
from quantcore.evaluate.divergence import Divergence, divergence, open_base, save_base
from quantcore.evaluate.hardware import hardware
from quantcore.evaluate.perplexity import Perplexity, perplexity
from quantcore.evaluate.spread import PERCENTILES
from quantcore.identity import build
from quantcore.models import open_model
from quantcore.sources.base import Source

N_CTX = 512  # as llama-perplexity


def add_parser(verbs: Any) -> None:
    parser = verbs.add_parser("perplexity", help="measure how well a model predicts a text")
    parser.add_argument("source", metavar="MODEL", type=Path, help="GGUF file or model directory")
    parser.add_argument("text", metavar="TEXT", type=Path, help="UTF-8 text file")
    parser.add_argument(
        "--ctx", type=whole_number, metavar="N", help="tokens in a chunk (512, or as in a base)"
    )
    parser.add_argument("--chunks", type=whole_number, metavar="N", help="chunks to measure; all if left out")
    parser.add_argument(
        "--threads", type=whole_number, metavar="N", help="threads to use; one for each core if left out"
    )
    parser.add_argument(
        "--activations",
        choices=ACTIVATIONS,
        default=ACTIVATIONS[0],
        help="float32 measures the weights alone (the default); llama.cpp rounds inputs, keys and values as "
        "llama.cpp does on a processor, whose figures these then are",
    )
    add_device(parser)
    base = parser.add_mutually_exclusive_group()
    base.add_argument("--save-base", type=Path, metavar="F", help="also write all log probabilities to F")
    base.add_argument("--kl-base", type=Path, metavar="F", help="compare with the log probabilities in F")
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    source, text = open_model(arguments.source), read_text(arguments.text)
    if arguments.save_base:
        inputs = {"a file of the model": source.files, "the text": (arguments.text,)}
        refuse_overwriting(arguments.save_base, inputs)
    n_ctx = _context(arguments)
    note_context(source, n_ctx)
    common: dict[str, Any] = {
        "n_chunks": arguments.chunks,
        "threads": arguments.threads,
        "activations": arguments.activations,
        "device": arguments.device,
    }
    try:
        with progress_bar() as report:
            found, far = _measure(source, text.content, n_ctx, arguments, common | {"report": report})
    except ShortText as exc:
        raise ShortText(f"{arguments.text}: {exc}") from exc
    if not arguments.json:
        _print(found, far)
    document = _document(found) | (_far_document(far) if far else {})
    how = {"activations": arguments.activations, "dataset_sha256": text.sha256, "build": build()}
    return document | how | {"hardware": asdict(hardware())}


def _context(arguments: argparse.Namespace) -> int:
    """Return how many tokens a chunk has. A base says itself how long its chunks are."""
    if not arguments.kl_base:
        return int(arguments.ctx or N_CTX)
    n_ctx = int(open_base(arguments.kl_base).tokens.shape[1])
    if arguments.ctx not in {None, n_ctx}:
        note(f"the chunks of the base have {n_ctx} tokens; --ctx {arguments.ctx} has no say in it")
    return n_ctx


def _measure(
    source: Source, text: str, n_ctx: int, arguments: argparse.Namespace, common: dict[str, Any]
) -> tuple[Perplexity, Divergence | None]:
    if arguments.kl_base:
        return divergence(source, text, arguments.kl_base, **common)
    if arguments.save_base:
        return save_base(source, text, arguments.save_base, n_ctx=n_ctx, **common), None
    return perplexity(source, text, n_ctx=n_ctx, **common), None


def _document(found: Perplexity) -> dict[str, Any]:
    fields = (
        *("ppl", "ppl_stderr", "bits_per_byte", "bits_per_byte_stderr", "n_ctx", "chunks", "tokens"),
        *("scored_bytes", "bos", "seconds", "tokens_per_second"),
    )
    return {field: getattr(found, field) for field in fields}


def _far_document(far: Divergence) -> dict[str, Any]:
    compared = far.comparison
    return {
        "kld": asdict(far.kld),
        "same_top": far.same_top,
        "same_top_stderr": far.same_top_stderr,
        "rms_dp": far.rms_dp,
        "rms_dp_stderr": far.rms_dp_stderr,
        "delta_p": asdict(far.delta_p),
        "ppl_base": far.base_ppl,
        "ppl_base_stderr": far.base_ppl_stderr,
        "ppl_correlation": compared.correlation,
        "ppl_log_ratio": compared.log_ratio,
        "ppl_log_ratio_stderr": compared.log_ratio_stderr,
        "ppl_ratio": compared.ratio,
        "ppl_ratio_stderr": compared.ratio_stderr,
        "ppl_difference": compared.difference,
        "ppl_difference_stderr": compared.difference_stderr,
    }


def _print(found: Perplexity, far: Divergence | None) -> None:
    print(
        f"perplexity {found.ppl:.4f} +/- {found.ppl_stderr:.4f} "
        f"({found.chunks} chunks of {found.n_ctx} tokens, {human_seconds(found.seconds)}, "
        f"{found.tokens_per_second:.0f} tokens/s)"
    )
    print(f"bits per byte {found.bits_per_byte:.4f} +/- {found.bits_per_byte_stderr:.4f}")
    if far is not None:
        _print_far(far)


def _print_far(far: Divergence) -> None:
    compared = far.comparison
    print(f"of its base {far.base_ppl:.4f} +/- {far.base_ppl_stderr:.4f}, on the chunks compared")
    print(
        f"beside its base {compared.difference:+.4f} +/- {compared.difference_stderr:.4f}, "
        f"ratio {compared.ratio:.6f} +/- {compared.ratio_stderr:.6f}, "
        f"its log {compared.log_ratio:+.6f} +/- {compared.log_ratio_stderr:.6f}, "
        f"correlation {compared.correlation:.2%}"
    )
    print(f"KL divergence {far.kld.mean:.6f} +/- {far.kld.stderr:.6f}")
    print(f"same likeliest token {far.same_top:.3%} +/- {far.same_top_stderr:.3%}")
    print(f"change of probability {far.delta_p.mean:+.3%} +/- {far.delta_p.stderr:.3%}")
    print(f"RMS change of probability {far.rms_dp:.3%} +/- {far.rms_dp_stderr:.3%}")
    print("          KL divergence  change of probability")
    kld, delta_p = asdict(far.kld), asdict(far.delta_p)
    for name, percent in reversed(PERCENTILES.items()):
        label = f"{percent:g} %" if name.startswith("p") else name
        print(f"{label:>8}  {kld[name]:>13.6f}  {delta_p[name]:>+21.3%}")
