"""The process that holds PyTorch and Transformers."""

from __future__ import annotations

import copy
import os
import time
from typing import Any

from quantcore.evaluate.children import Emit, Tokens, measure, serve

FILL = 512  # tokens in one pass where a cache is filled: more take more memory, and are no faster


class Model:
    """A causal language model and its cache; one sequence, no gradients."""

    def __init__(self, job: dict[str, Any]) -> None:
        import torch
        import transformers

        torch.set_num_threads(job["threads"])
        torch.set_grad_enabled(False)
        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        load = transformers.AutoModelForCausalLM.from_pretrained
        model = load(job["path"], dtype="auto", local_files_only=True).eval()
        # Quantized weights know their device already, and some refuse to be moved.
        self.model = model if hasattr(model, "hf_quantizer") else model.to(self.device)
        self.filled: Any = None
        self.largest: tuple[int, int | None, str | None] = (
            0,
            None,
            None,
        )  # tokens, bytes and type of a cache

    def fill(self, prefix: Tokens) -> None:
        self.filled = None
        for start in range(0, len(prefix), FILL):
            self.filled = self._step(prefix[start : start + FILL], self.filled)

    def prefill(self, prefix: Tokens, prompt: Tokens) -> float:
        seconds, cache = self._timed([prompt], self._at(prefix))
        self._weigh(cache, len(prefix) + len(prompt))
        return len(prompt) / seconds

    def decode(self, prefix: Tokens, first: int, count: int) -> float:
        # Which tokens follow makes no difference to time, so that none need be drawn from what comes out.
        seconds, cache = self._timed([[first]] * count, self._at(prefix))
        self._weigh(cache, len(prefix) + count)
        return count / seconds

    def _at(self, prefix: Tokens) -> Any:
        """Return a cache that holds `prefix` and may be written to; windows and states cannot be cut back."""
        return copy.deepcopy(self.filled) if prefix else None

    def _timed(self, steps: list[Tokens], cache: Any) -> tuple[float, Any]:
        self._wait()
        began = time.perf_counter()
        for tokens in steps:
            cache = self._step(tokens, cache)
        self._wait()
        return time.perf_counter() - began, cache

    def _step(self, tokens: Tokens, cache: Any) -> Any:
        ids = self.torch.tensor([tokens], device=self.device)  # (1, tokens)
        return self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).past_key_values

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def _weigh(self, cache: Any, tokens: int) -> None:
        """Keep what the longest cache took."""
        if tokens > self.largest[0]:
            held = self._tensors(cache)
            kind = _short(held[0].dtype) if held else None
            self.largest = tokens, sum(tensor.nbytes for tensor in held) if held else None, kind

    def _tensors(self, cache: Any) -> list[Any]:
        layers = getattr(cache, "layers", [])
        held = [value for layer in layers for value in vars(layer).values()]
        return [value for value in held if isinstance(value, self.torch.Tensor)]

    def memory(self) -> dict[str, Any]:
        """Return bytes of weights, tied ones once, and of the longest cache. Scratch space is not told."""
        held = [*self.model.parameters(), *self.model.buffers(), *self._scales()]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in held}
        tokens, kv, kind = self.largest
        weights = sum(storage.nbytes() for storage in storages.values())
        return {"model": weights, "kv": kv, "compute": None, "n_ctx": tokens, "type_k": kind, "type_v": kind}

    def _scales(self) -> list[Any]:
        """Return what bitsandbytes keeps beside its weights: scales, their own scales, and the code."""
        states = [getattr(weight, "quant_state", None) for weight in self.model.parameters()]
        states += [getattr(state, "state2", None) for state in states]
        held = [value for state in states if state is not None for value in vars(state).values()]
        return [value for value in held if isinstance(value, self.torch.Tensor)]

    def backend(self) -> str:
        """Return what it runs on, and in which type it calculates."""
        device = self.torch.cuda.get_device_name() if self.device == "cuda" else "CPU"
        return f"{device}, {_short(self.model.dtype)}"


def _short(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _bench(job: dict[str, Any], emit: Emit) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    model = Model(job)
    import torch
    import transformers

    return {
        "samples": measure(model, job, emit),
        "memory": model.memory(),
        "backend": model.backend(),
        "flags": {"attention": str(model.model.config._attn_implementation), "seed": job["seed"]},  # noqa: SLF001 no other name
        "engine_version": f"transformers {transformers.__version__} (torch {torch.__version__})",
    }


if __name__ == "__main__":
    serve({"bench": _bench})
