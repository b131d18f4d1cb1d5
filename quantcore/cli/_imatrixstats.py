"""What `quantcore imatrix --show-statistics` shows of an importance matrix."""

from __future__ import annotations

from typing import Any

from quantcore.cli._terminal import note, visible
from quantcore.imatrix import open_imatrix
from quantcore.imatrixstats import EntryStatistics, LayerStatistics, entry_statistics, layer_statistics


def show_statistics(path: str, *, quiet: bool) -> dict[str, Any]:
    """Return the document of `--json`, having printed two tables unless `quiet`."""
    imatrix = open_imatrix(path)
    entries = entry_statistics(imatrix)
    layers = layer_statistics(entries)
    left_out = len(imatrix) - len(entries)
    if left_out:
        note(f"no token reached {left_out} of {len(imatrix)} entries, which are left out")
    if not quiet:
        _print(entries, layers)
    return {
        "entries": len(imatrix),
        "chunks": imatrix.n_chunks,
        "datasets": list(imatrix.datasets),
        "tensors": [_entry(entry) for entry in entries],
        "layers": [
            {"layer": e.layer, "sum": e.total, "z_share": e.z_share, "cosine_previous": e.cosine}
            for e in layers
        ],
    }


def _entry(entry: EntryStatistics) -> dict[str, Any]:
    return {
        "name": entry.name,
        "layer": entry.layer,
        "sum": entry.total,
        "min": entry.smallest,
        "max": entry.largest,
        "mean": entry.mean,
        "stddev": entry.deviation,
        "active": entry.active,
        "elements": entry.elements,
        "entropy": entry.entropy,
        "entropy_normalized": entry.entropy_share,
        "z_share": entry.z_share,
        "cosine_previous": entry.cosine,
    }


def _print(entries: list[EntryStatistics], layers: list[LayerStatistics]) -> None:
    row = "{:>5} {:<20} {:>11} {:>9} {:>11} {:>8} {:>8} {:>8} {:>8} {:>8} {:>8} {:>7} {:>7}"
    heads = ("layer", "tensor", "sum", "min", "max", "mean", "stddev", "active", "elements", "entropy")
    print(row.format(*heads, "of most", "z > 1", "cosine"))
    for e in entries:
        print(
            row.format(
                "-" if e.layer is None else e.layer,
                visible(e.part),
                f"{e.total:.2f}",
                f"{e.smallest:.4f}",
                f"{e.largest:.4f}",
                f"{e.mean:.4f}",
                f"{e.deviation:.4f}",
                f"{e.active:.2%}",
                e.elements,
                f"{e.entropy:.4f}",
                "-" if e.entropy_share is None else f"{e.entropy_share:.2%}",
                f"{e.z_share:.2%}",
                _similarity(e.cosine),
            )
        )
    print()
    row = "{:>5} {:>12} {:>9} {:>7}"
    print(row.format("layer", "mean sum", "z > 1", "cosine"))
    for layer in layers:
        print(
            row.format(layer.layer, f"{layer.total:.2f}", f"{layer.z_share:.2%}", _similarity(layer.cosine))
        )


def _similarity(cosine: float | None) -> str:
    return "-" if cosine is None else f"{cosine:.4f}"
