"""The process that holds llama.cpp: `python -m quantcore.evaluate.engine_child`.

Reads one job, a JSON object, from standard input; answers with JSON lines on standard output:
`{"done", "total", "item"}` after each run, then `{"result"}`, `{"missing"}` or `{"error"}`. All else that the
engine prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import random
import secrets
import sys
from collections.abc import Callable
from typing import Any

Emit = Callable[[dict[str, Any]], None]


def main() -> None:
    """Do the job that stands on standard input."""
    # Native code writes to descriptor 1 as it likes; answers go to a copy that only this module knows.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def emit(message: dict[str, Any]) -> None:
        answers.write(json.dumps(message) + "\n")
        answers.flush()

    job = json.load(sys.stdin)
    try:
        emit({"result": JOBS[job["kind"]](job, emit)})
    except ImportError as exc:
        emit({"missing": str(exc)})
    except Exception as exc:  # noqa: BLE001 - whatever the engine raises is what the caller must hear
        emit({"error": f"{type(exc).__name__}: {exc}"})


def _server(job: dict[str, Any]) -> Any:
    """Load the model as a server with one slot, reached by calls only."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = job["path"]
    params.n_ctx = job["n_ctx"]
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
    params.verbosity = 4  # the level at which buffer sizes are told
    params.cache_ram_mib = 0
    params.fit_params = False
    params.api_keys = [secrets.token_hex(16)]  # the server also listens on a local port; nobody is to use it
    if job.get("stretch") and job["n_ctx"] > job["trained"]:
        # The server cuts the context down to the trained length unless rope is stretched. That changes what
        # is generated, not how long it takes, and only speed is measured with such a context.
        params.rope_scaling_type = xllamacpp.llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_YARN
        params.rope_freq_scale = job["trained"] / job["n_ctx"]
    return xllamacpp.Server(params)


def _complete(server: Any, prompt: str | list[int], count: int) -> dict[str, Any]:
    answer = server.handle_completions(
        {
            "prompt": prompt,
            "n_predict": count,
            "cache_prompt": False,
            "ignore_eos": True,
            "temperature": 0,
            "samplers": ["top_k"],
            "top_k": 1,
            "stream": False,
        }
    )
    if "error" in answer:
        raise RuntimeError(answer["error"].get("message", answer["error"]))
    return dict(answer)


def _bench(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    """Time prompts of `pp` random tokens, and the generation of `tg` tokens after a single one."""
    server = _server(job)
    source = random.Random(job["seed"])  # noqa: S311 - any tokens do, as long as they can be drawn again

    def prompt(length: int) -> list[int]:
        return [source.randrange(job["vocab"]) for _ in range(length)]

    def prefill() -> float:
        return float(_complete(server, prompt(job["pp"]), 1)["timings"]["prompt_per_second"])

    def decode() -> float:
        # The first token comes out of the prompt; the clock starts there, so one more is asked for.
        timings = _complete(server, prompt(1), job["tg"] + 1)["timings"]
        return float(1000 * (timings["predicted_n"] - 1) / timings["predicted_ms"])

    tests = [(f"pp{job['pp']}", prefill), (f"tg{job['tg']}", decode)]
    samples: dict[str, list[float]] = {}
    total, done = len(tests) * (job["runs"] + 1), 0
    for name, test in tests:
        for run in range(job["runs"] + 1):  # the first one warms up
            rate = test()
            if run:
                samples.setdefault(name, []).append(rate)
            done += 1
            emit({"done": done, "total": total, "item": name})
    return {"samples": samples, **_engine()}


def _generate(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    answer = _complete(_server(job), job["prompt"], job["count"])
    return {"text": answer["choices"][0]["text"], **_engine()}


def _engine() -> dict[str, Any]:
    import xllamacpp

    devices = [str(device["name"]) for device in xllamacpp.get_device_info()]
    cards = [name for name in devices if name not in ("CPU", "BLAS", "ACCEL")]
    build = xllamacpp.BUILD_INFO
    number, commit = build.get("build_number"), build.get("commit")
    stated = f"llama.cpp b{number} {commit}" if number else "llama.cpp build not stated"
    return {
        "engine_version": f"xllamacpp {xllamacpp.__version__} ({stated})",
        "backend": ", ".join(cards) or "CPU",
    }


JOBS: dict[str, Callable[[dict[str, Any], Emit], dict[str, Any]]] = {"bench": _bench, "generate": _generate}

if __name__ == "__main__":
    main()
