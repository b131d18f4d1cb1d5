"""The process that holds llama.cpp, as a server that is reached by calls only."""

from __future__ import annotations

import secrets
from typing import Any

from quantcore.evaluate.children import CannotTime, Emit, Tokens, measure, serve

SLACK = 8  # tokens of the prefix that may be read again with a prompt; its rate is that of all that were read


class Server:
    """The model in llama.cpp's server with one slot."""

    def __init__(self, job: dict[str, Any]) -> None:
        import xllamacpp

        params = xllamacpp.CommonParams()
        params.model.path = job["path"]
        params.n_ctx = job["n_ctx"]
        params.n_parallel = 1
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = job["threads"]
        params.verbosity = 4  # the level at which buffer sizes are told
        params.cache_ram_mib = 0
        params.fit_params = False
        params.api_keys = [secrets.token_hex(16)]  # it also listens on a local port; nobody is to use it
        if job.get("stretch") and job["n_ctx"] > job["trained"]:
            # The server cuts the context down to the trained length unless rope is stretched. That changes
            # what is generated, not how long it takes, and only speed is measured with such a context.
            params.rope_scaling_type = xllamacpp.llama_rope_scaling_type.LLAMA_ROPE_SCALING_TYPE_YARN
            params.rope_freq_scale = job["trained"] / job["n_ctx"]
        self.flags = _flags(params)
        self.server = xllamacpp.Server(params)

    def complete(self, prompt: str | Tokens, count: int, *, cached: bool = False) -> dict[str, Any]:
        """Return the answer to `prompt`; with `cached` what it begins with is not read again."""
        answer = self.server.handle_completions(
            {
                "prompt": prompt,
                "n_predict": count,
                "cache_prompt": cached,
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

    def fill(self, prefix: Tokens) -> None:
        self.complete(prefix, 1)

    def prefill(self, prefix: Tokens, prompt: Tokens) -> float:
        for _ in range(2):
            timings = self.complete(prefix + prompt, 1, cached=bool(prefix))["timings"]
            if timings["prompt_n"] - len(prompt) <= SLACK:
                return float(timings["prompt_per_second"])
            # A cache with a window or a state goes back only to where it kept a checkpoint: part of the
            # prefix was read again, in the same time. Behind a cache just filled nothing must go back.
            self.fill(prefix)
        raise CannotTime(f"its cache does not keep {len(prefix)} tokens, so no prompt can be timed there")

    def decode(self, prefix: Tokens, first: int, count: int) -> float:
        # The first token comes out of the prompt; the clock starts there, so one more is asked for.
        timings = self.complete([*prefix, first], count + 1, cached=bool(prefix))["timings"]
        return float(1000 * (timings["predicted_n"] - 1) / timings["predicted_ms"])


def _flags(params: Any) -> dict[str, Any]:
    """Return the settings that a speed depends on, by the names that llama-bench gives them."""
    return {
        "n_ctx": params.n_ctx,
        "n_batch": params.n_batch,
        "n_ubatch": params.n_ubatch,
        "n_gpu_layers": "all that fit" if params.n_gpu_layers < 0 else params.n_gpu_layers,
        "flash_attn": {-1: "auto", 0: "off", 1: "on"}.get(int(params.flash_attn_type), "unknown"),
        "rope_stretched": params.rope_freq_scale not in {0.0, 1.0},
    }


def _bench(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    server = Server(job)
    flags = {**server.flags, "seed": job["seed"]}
    return {"samples": measure(server, job, emit), "flags": flags, **_engine()}


def _generate(job: dict[str, Any], _emit: Emit) -> dict[str, Any]:
    answer = Server(job).complete(job["prompt"], job["count"])
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


if __name__ == "__main__":
    serve({"bench": _bench, "generate": _generate})
