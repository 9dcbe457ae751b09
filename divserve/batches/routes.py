"""The routes of files and batches, as OpenAI's."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import FileResponse
from openai.types import Batch, FileDeleted, FileObject
from pydantic import ValidationError

from divserve.batches.call import Caller
from divserve.batches.files import FileStore
from divserve.batches.folder import BATCH_ID, FILE_ID, Folder, new_id
from divserve.batches.owner import Owner
from divserve.batches.parts import Parts
from divserve.batches.room import Room
from divserve.batches.shapes import EXPIRY, FORM, CreateBatch, Expiry, page
from divserve.batches.store import BatchStore
from divserve.batches.upload import Upload, receive
from divserve.errors import InvalidRequest, NotFound, TooManyRequests
from divserve.http.errors import invalid_body
from divserve.http.scope import KEY_NAME

__all__ = ["install"]

WRAPPED = 65_536
"""Bytes of a line beside its body."""
MOST_UPLOADS = 8
"""Of one process; each holds a mebibyte of memory."""

router = APIRouter(prefix="/v1")


class Service:
    """What the routes use.

    Args:
        app: the application, with its limits.
        args: the server's arguments.
    """

    def __init__(self, app: FastAPI, args: Namespace) -> None:
        self.settings = args.batches
        folder = Folder(self.settings.batch_dir)
        self.files = FileStore(folder, self.settings)
        self.store = BatchStore(folder, self.settings, self.files)
        self.piece_s: float = args.edges.body_timeout
        capacity = app.state.engine_client.capacity.max_rows
        traffic = app.state.traffic
        parts = Parts(
            self.store,
            self.files,
            Caller(app, args.scheduling_policy == "priority"),
            Room(traffic, capacity, self.settings.batch_max_rows),
            args.edges.max_body_bytes + WRAPPED,
        )
        self.owner = Owner(parts, traffic.drain)
        self._uploads = 0

    @contextmanager
    def uploading(self) -> Iterator[None]:
        """Counts an upload.

        Raises:
            TooManyRequests: there are too many at the same time.
        """
        if self._uploads >= MOST_UPLOADS:
            raise TooManyRequests(
                f"The server takes {MOST_UPLOADS} uploads at a time: try again later.",
                code="queue_full",
                retry_after_s=1.0,
            )
        self._uploads += 1
        try:
            yield
        finally:
            self._uploads -= 1


def service(request: Request) -> Service:
    """The batches of this server.

    Raises:
        NotFound: it was started without.
    """
    found: Service | None = request.app.state.batches
    if found is None:
        raise NotFound(
            "This server keeps no files and runs no batches: start it with --batch-dir DIR.",
            code="not_found",
        )
    return found


def client(request: Request) -> str | None:
    """The name of the client's key; None without keys."""
    name: str | None = request.scope.get("state", {}).get(KEY_NAME)
    return name


Batches = Annotated[Service, Depends(service)]
Client = Annotated[str | None, Depends(client)]


@router.post("/files", openapi_extra={"requestBody": FORM})
async def create_file(request: Request, batches: Batches, owner: Client) -> FileObject:
    """Uploads a file, as multipart/form-data with ``purpose=batch``."""
    settings, file_id = batches.settings, new_id("file-")
    path = batches.store.folder.incoming / file_id
    try:
        with batches.uploading():
            upload = await receive(
                request,
                path,
                settings.batch_max_file_bytes,
                batches.piece_s,
                batches.files.check_room,
            )
        filename, keep_s = _checked(upload)
        return await to_thread.run_sync(
            partial(batches.files.add, path, file_id, owner, "batch", filename, keep_s)
        )
    finally:
        await to_thread.run_sync(partial(path.unlink, missing_ok=True))


def _checked(upload: Upload) -> tuple[str, int | None]:
    """Name and lifetime of an upload.

    Raises:
        InvalidRequest: a field is missing or wrong.
    """
    if upload.filename is None:
        raise InvalidRequest(
            "file: field required", param="file", code="missing_required_parameter"
        )
    if (purpose := upload.fields.get("purpose")) != "batch":
        raise InvalidRequest(
            f"purpose: must be 'batch', not {str(purpose)[:64]!r}.", param="purpose"
        )
    given = [upload.fields.get(name) for name in EXPIRY]
    if given == [None, None]:
        return upload.filename, None
    try:
        expiry = Expiry.model_validate(dict(zip(("anchor", "seconds"), given, strict=True)))
    except ValidationError as error:
        raise invalid_body(
            [{**detail, "loc": ("expires_after", *detail["loc"])} for detail in error.errors()]
        ) from None
    return upload.filename, expiry.seconds


@router.get("/files")
async def list_files(
    batches: Batches,
    owner: Client,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> dict[str, Any]:
    """The client's files."""
    found = await to_thread.run_sync(batches.files.of_client, owner, purpose)
    return page(found, after, limit, FILE_ID, order == "desc")


@router.get("/files/{file_id}")
async def retrieve_file(file_id: str, batches: Batches, owner: Client) -> FileObject:
    """One file, without its content."""
    return await to_thread.run_sync(batches.files.get, file_id, owner)


@router.get("/files/{file_id}/content", response_class=FileResponse)
async def file_content(file_id: str, batches: Batches, owner: Client) -> FileResponse:
    """The content of a file."""
    found = await to_thread.run_sync(batches.files.get, file_id, owner)
    return FileResponse(batches.files.path(found.id), media_type="application/jsonl")


@router.delete("/files/{file_id}")
async def delete_file(file_id: str, batches: Batches, owner: Client) -> FileDeleted:
    """Deletes a file; a batch that has begun with it goes on."""
    found = await to_thread.run_sync(batches.files.get, file_id, owner)
    await to_thread.run_sync(batches.files.delete, found.id)
    return FileDeleted(id=found.id, deleted=True, object="file")


@router.post("/batches")
async def create_batch(body: CreateBatch, batches: Batches, owner: Client) -> Batch:
    """Begins a batch of an uploaded file."""
    made = await to_thread.run_sync(batches.store.create, body, owner)
    batches.owner.wake()
    return made


@router.get("/batches")
async def list_batches(
    batches: Batches,
    owner: Client,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
) -> dict[str, Any]:
    """The client's batches, the newest first."""
    found = await to_thread.run_sync(batches.store.of_client, owner)
    return page(found, after, limit, BATCH_ID, newest=True)


@router.get("/batches/{batch_id}")
async def retrieve_batch(batch_id: str, batches: Batches, owner: Client) -> Batch:
    """One batch, with its progress."""
    return await to_thread.run_sync(batches.store.get, batch_id, owner)


@router.post("/batches/{batch_id}/cancel")
async def cancel_batch(batch_id: str, batches: Batches, owner: Client) -> Batch:
    """Ends a batch; its answers so far are kept."""
    found = await to_thread.run_sync(batches.store.cancel, batch_id, owner)
    batches.owner.wake()
    return found


def install(app: FastAPI, args: Namespace) -> None:
    """Puts the routes into `app`, which run batches if the server was started with a folder.

    Args:
        app: its state has the limits and the engine client.
        args: the server's arguments.
    """
    app.include_router(router)
    app.state.batches = None
    if args.batches.batch_dir is None:
        return
    made = app.state.batches = Service(app, args)
    outer = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(served: FastAPI) -> AsyncIterator[Any]:
        async with outer(served) as state, made.owner.running():
            yield state

    app.router.lifespan_context = lifespan
