"""OpenAI's files, as far as batches need them.

Source: https://platform.openai.com/docs/api-reference/files.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.formparsers import MultiPartException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Message, Receive

from deployments.door import Operation, admitted
from deployments.openai.pages import page
from models.errors import BodyTooLarge, InvalidRequest, UnsupportedFeature
from router.archive.files import StoredFile

if TYPE_CHECKING:
    from deployments.ingress import Ingress

PIECE_BYTES = 1024**2
"""Of a file on its way to or from the archive."""

FORM_BYTES = 64 * 1024
"""What a form has besides its file."""

MAX_FILENAME = 255


class FilesDoor:
    def __init__(self, ingress: Ingress) -> None:
        self.ingress = ingress

    def operations(self) -> tuple[Operation, ...]:
        one = "/v1/files/{file_id}"
        return (
            Operation("POST", "/v1/files", self.upload),
            Operation("GET", "/v1/files", self.list),
            Operation("GET", one, self.retrieve),
            Operation("DELETE", one, self.delete),
            Operation("GET", f"{one}/content", self.content),
        )

    async def upload(self, request: Request) -> Response:
        """A form with `purpose` and `file`. The file goes to the archive in pieces; it is never whole in memory."""
        principal = await admitted(self.ingress, request)
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise InvalidRequest("A file comes as a form: send multipart/form-data with 'file' and 'purpose'.", "file")
        archive = self.ingress.archive
        file_id, max_bytes = await archive.begin_file(principal.org)
        finished = False
        try:
            form = await _form(Request(request.scope, _bounded(request.receive, max_bytes)))
            try:
                file = _checked(form)
                while chunk := await file.read(PIECE_BYTES):
                    await archive.append_file(file_id, chunk)
                stored = await archive.finish_file(file_id, (file.filename or "file")[-MAX_FILENAME:], "batch")
                finished = True
            finally:
                await form.close()
        finally:
            if not finished:
                await archive.abort_file(file_id)
        return JSONResponse(_file_body(stored))

    async def list(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        found = await self.ingress.archive.list_files(principal.org, request.query_params.get("purpose"))
        return JSONResponse(page([_file_body(file) for file in reversed(found)], request.query_params, 10_000))

    async def retrieve(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        return JSONResponse(_file_body(await self.ingress.archive.file(principal.org, request.path_params["file_id"])))

    async def delete(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        file_id = request.path_params["file_id"]
        await self.ingress.archive.delete_file(principal.org, file_id)
        return JSONResponse({"id": file_id, "object": "file", "deleted": True})

    async def content(self, request: Request) -> Response:
        principal = await admitted(self.ingress, request)
        archive, org, file_id = self.ingress.archive, principal.org, request.path_params["file_id"]
        stored = await archive.file(org, file_id)

        async def pieces() -> AsyncIterator[bytes]:
            for offset in range(0, stored.size_bytes, PIECE_BYTES):
                yield await archive.read_file(org, file_id, offset, PIECE_BYTES)

        headers = {"content-length": str(stored.size_bytes)}
        return StreamingResponse(pieces(), 200, headers, "application/octet-stream")


async def _form(request: Request) -> FormData:
    """The form, a large file of which lies on disk meanwhile. Raises `InvalidRequest`."""
    try:
        return await request.form(max_files=1, max_fields=8)
    except (MultiPartException, HTTPException) as error:
        what = error.message if isinstance(error, MultiPartException) else error.detail
        raise InvalidRequest(f"The form cannot be read: {what}", "file") from None


def _checked(form: FormData) -> UploadFile:
    file, purpose = form.get("file"), form.get("purpose")
    if unknown := set(form) - {"file", "purpose"}:
        name = sorted(unknown)[0]
        raise UnsupportedFeature(f"'{name}' is not supported; leave it out.", name)
    if purpose != "batch":
        raise UnsupportedFeature("'purpose' has to be 'batch': files are for batches only.", "purpose")
    if not isinstance(file, UploadFile):
        raise InvalidRequest("'file' is missing; send the file as a part of the form.", "file")
    return file


def _bounded(receive: Receive, max_bytes: int) -> Receive:
    """`receive` until more has come than a file may have."""
    left = max_bytes + FORM_BYTES

    async def bounded() -> Message:
        nonlocal left
        message = await receive()
        left -= len(message.get("body", b""))
        if left < 0:
            raise BodyTooLarge(f"A file may have {max_bytes} bytes; split it.", "file")
        return message

    return bounded


def _file_body(file: StoredFile) -> dict[str, Any]:
    return {
        "id": file.file_id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_at_unix_s,
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
    }
