"""Files by address: whole, in part, or only their headers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import BinaryIO

from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.utils.http import content_disposition_header, parse_etags
from django.views.decorators.http import require_safe

from hub import blobs
from hub.registry import queries, ranges

PIECE = 256 << 10
logger = logging.getLogger(__name__)


@require_safe
def resolve(request: HttpRequest, owner: str, name: str, rev: str, path: str) -> HttpResponseBase:
    """Send a file of a model."""
    found = queries.resolve(owner, name, rev, path)
    if found is None:
        raise Http404(f"{owner}/{name} has no file {path} at {rev}")
    etag = f'"{found.blob.sha256}"'
    if etag in parse_etags(request.headers.get("If-None-Match", "")):
        return _with_headers(HttpResponse(status=304), found, etag)
    try:
        part = _part(request, found.blob.size, etag)
    except ranges.Unsatisfiable:
        headers = {"Content-Range": f"bytes */{found.blob.size}"}
        return _with_headers(HttpResponse(status=416, headers=headers), found, etag)
    return _with_headers(_send(request, found, part), found, etag)


def _part(request: HttpRequest, size: int, etag: str) -> tuple[int, int] | None:
    header = request.headers.get("Range")
    # If-Range: a part is only of use to whoever has the rest of the same file.
    if header is None or request.headers.get("If-Range", etag) != etag:
        return None
    return ranges.parse(header, size)


def _send(request: HttpRequest, found: queries.Found, part: tuple[int, int] | None) -> HttpResponseBase:
    start, stop = part or (0, found.blob.size)
    headers = {"Content-Length": str(stop - start)}
    if part:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{found.blob.size}"
    status = 206 if part else 200
    content_type = "application/octet-stream"
    if request.method == "HEAD":
        return HttpResponse(status=status, content_type=content_type, headers=headers)
    try:
        file = blobs.open_blob(found.blob.sha256)
    except blobs.BlobError as exc:
        logger.error("%s: %s", found.path, exc)  # noqa: TRY400 - the message is all there is to know
        raise Http404(f"{found.path} is missing from the store") from exc
    return StreamingHttpResponse(
        _Pieces(file, start, stop), status=status, content_type=content_type, headers=headers
    )


class _Pieces(Iterator[bytes]):
    """A part of a file in pieces. The server calls `close`, even when the client left before the first."""

    def __init__(self, file: BinaryIO, start: int, stop: int) -> None:
        self.file = file
        self.left = stop - start
        file.seek(start)

    def __next__(self) -> bytes:
        piece = self.file.read(min(PIECE, self.left))
        if not piece:
            raise StopIteration
        self.left -= len(piece)
        return piece

    def close(self) -> None:
        self.file.close()


def _with_headers(response: HttpResponseBase, found: queries.Found, etag: str) -> HttpResponseBase:
    response["ETag"] = etag
    response["X-Repo-Commit"] = found.commit
    response["Accept-Ranges"] = "bytes"
    # Attachments are never shown by a browser, so a model's README cannot run as a page of ours.
    response["Content-Disposition"] = content_disposition_header(True, found.path.rpartition("/")[2]) or ""
    response["X-Content-Type-Options"] = "nosniff"
    return response
