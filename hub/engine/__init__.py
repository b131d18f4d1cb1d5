"""The hub's one door to quantcore: its types, errors and progress in the hub's own words.

Nothing else in the hub imports quantcore, so what the engine may be asked is written here, whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hub.engine.environment import hardware, measured_with, versions
from hub.engine.exchanged import (
    Closeness,
    EngineError,
    Figure,
    Inspection,
    Kind,
    LevelInfo,
    Made,
    NoEngine,
    Quality,
    Refused,
    Speed,
    SpeedOf,
    Speeds,
    Tell,
    TensorErrors,
    Useless,
    WorthRetry,
    translated,
)
from hub.engine.importance import (
    CALIBRATION,
    calibrate,
    calibration_protocol,
    importance_method,
    importance_name,
    open_importance,
    promised_importance,
)
from hub.engine.making import (
    fingerprint,
    is_weighed,
    kernels_missing,
    levels,
    make_plan,
    plan_document,
    quantize,
    verify,
    wait_for_kernels,
)
from hub.engine.measuring import (
    baseline,
    cache_key,
    increase,
    is_base,
    perplexity,
    protocol_key,
    quality,
    quality_protocol,
    tensor_errors,
)
from hub.engine.sources import inspect, is_quantized, open_source
from hub.engine.speed import N_DEPTH, speeds

if TYPE_CHECKING:
    from hub.engine.exchanged import Importance, Losses, Plan, Source

__all__ = [
    "CALIBRATION",
    "N_DEPTH",
    "Closeness",
    "EngineError",
    "Figure",
    "Importance",
    "Inspection",
    "Kind",
    "LevelInfo",
    "Losses",
    "Made",
    "NoEngine",
    "Plan",
    "Quality",
    "Refused",
    "Source",
    "Speed",
    "SpeedOf",
    "Speeds",
    "Tell",
    "TensorErrors",
    "Useless",
    "WorthRetry",
    "baseline",
    "cache_key",
    "calibrate",
    "calibration_protocol",
    "fingerprint",
    "hardware",
    "importance_method",
    "importance_name",
    "increase",
    "inspect",
    "is_base",
    "is_quantized",
    "is_weighed",
    "kernels_missing",
    "levels",
    "make_plan",
    "measured_with",
    "open_importance",
    "open_source",
    "perplexity",
    "plan_document",
    "promised_importance",
    "protocol_key",
    "quality",
    "quality_protocol",
    "quantize",
    "speeds",
    "tensor_errors",
    "translated",
    "verify",
    "versions",
    "wait_for_kernels",
]
