"""Divide a planned file into several of a size or a number of tensors, as llama-gguf-split divides a file."""

from __future__ import annotations

from dataclasses import replace

from quantcore.containers.shards import counts_by_number, counts_by_size, lay_out
from quantcore.errors import InputError
from quantcore.plan import Plan, output_metadata
from quantcore.sources.base import Source


def divided(
    plan: Plan, source: Source, *, max_bytes: int | None = None, max_tensors: int | None = None
) -> Plan:
    """Return the plan of the same model in parts of at most `max_bytes` of data or `max_tensors` tensors."""
    if [source.keeps_parts, max_bytes is not None, max_tensors is not None].count(True) > 1:
        raise InputError("parts are those of the source, or of a size, or of a number of tensors")
    infos = [tensor.info for tensor in plan.tensors]
    if max_bytes is not None:
        parts = counts_by_size(infos, max_bytes)
    elif max_tensors is not None:
        parts = counts_by_number(len(infos), max_tensors)
    else:
        return plan
    metadata = output_metadata(source, plan.file_type, plan.added, converted=plan.converted)
    shards = lay_out(metadata, infos, parts)
    return replace(plan, parts=parts, file_bytes=sum(shard.nbytes for shard in shards))
