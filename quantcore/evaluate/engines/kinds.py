"""What kind of model lies at a path, as engines tell them apart.

1. Transformers, `quantization_config.quant_method` of config.json: gptq, awq, bitsandbytes, exl2, ...
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from quantcore.errors import InputError
from quantcore.sources.jsonfiles import read_object

GGUF, HUGGINGFACE, ONNX = "gguf", "huggingface", "onnx"


def kind_of(path: Path) -> str:
    """Return `gguf` for any file, else what a directory holds: `onnx`, a method of quantization, or
    `huggingface` for plain weights. Raises `InputError` for a directory without a model.
    """
    if not path.is_dir():
        return GGUF
    if any(path.glob("*.onnx")) or any(path.glob("onnx/*.onnx")):
        return ONNX
    method = config_of(path).get("quantization_config")
    return str(method.get("quant_method", HUGGINGFACE)) if isinstance(method, dict) else HUGGINGFACE


def config_of(path: Path) -> dict[str, Any]:
    """Return a Hugging Face directory's config.json."""
    if not (path / "config.json").is_file():
        raise InputError(
            f"{path}: is a directory without config.json; give a GGUF file or a model's directory"
        )
    return read_object(path / "config.json")
