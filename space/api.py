"""The HTTP API: the same questions, checks and answers as on the page.

A body is the sample (or a list of them), and the URL's parameters say how to answer. Bodies are read here and not by
FastAPI, because one address takes JSON and forms, and a wrong one shall get our codes.
"""

import asyncio
import json
from pathlib import PurePath
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from space import schemas
from space.base64_files import file_of_base64, json_type
from space.docs import docs_page
from space.errors import BadInput, Refusal, shown
from space.inputs import sample_of_json
from space.options import Options
from space.service import Service
from space.tasks import can_explain

TopK = Annotated[int | None, Query(ge=1, le=1_000_000, description="labels to give, best first; all by default")]
# Bodies of this size take long enough to parse to be noticed by the others on the event loop.
LARGE_BODY_BYTES = 256 * 1024
SAMPLE_ERRORS = (
    "nothing_given", "wrong_type", "unknown_field", "not_a_file", "modality_not_supported", "image_unreadable",
    "audio_unreadable", "bad_parameter", "text_too_long", "audio_too_long", "body_too_large", "body_too_slow",
    "bad_json", "bad_form", "unsupported_media_type", "unauthorized", "overloaded", "timeout", "draining",
    "internal_error",
)  # fmt: skip


def make_router(service: Service, options: Options, info: dict[str, Any]) -> APIRouter:
    """Give the routes of the API.

    Args:
        service: answers.
        options: the limits.
        info: what `/v1/model` says; from `model_info`.
    """
    router = APIRouter(dependencies=[Depends(refuse_unknown_parameters)])
    add_questions(router, service, options)
    add_explain(router, service, options, info["labels"])
    if service.gallery is not None:
        add_search(router, service, options, info["id"])
    add_description(router, info)
    add_operations(router, service)
    return router


async def refuse_unknown_parameters(request: Request) -> None:
    """Refuse a parameter that a question does not take: a misspelt one would be as if it were not given."""
    if request.method != "POST":  # probes of orchestrators may carry what they like
        return
    known = [field.alias for field in request.scope["route"].dependant.query_params]
    for name in request.query_params:
        if name not in known:
            takes = ", ".join(known) or "none"
            raise BadInput("bad_parameter", f"{shown(name)} is not a parameter of this address, which takes {takes}.")


def add_questions(router: APIRouter, service: Service, options: Options) -> None:
    errors = schemas.error_responses(*SAMPLE_ERRORS)

    @router.post(
        "/v1/predict", summary="Rank the labels of a sample", openapi_extra=schemas.sample_body(),
        responses={200: {"model": schemas.Prediction}, **errors},
    )  # fmt: skip
    async def predict(request: Request, top_k: TopK = None) -> Response:
        """What is it, and how sure is the model? Give any subset of text, picture and sound."""
        ranked = await service.ask(await read_one(request, options))
        return answered(request, predictions=ranked[:top_k])

    @router.post(
        "/v1/predict/batch", summary="Rank the labels of several samples",
        openapi_extra=schemas.samples_body(options.max_rows),
        responses={200: {"model": schemas.Batch}, **errors, **schemas.error_responses("too_many_rows")},
    )  # fmt: skip
    async def predict_batch(request: Request, top_k: TopK = None) -> Response:
        """A list of samples, one answer each, in order. A bad sample gets an error in its place, the others do not."""
        rows = await read_many(request, options)
        answers = await service.ask_all(rows)
        results = [a.body() if isinstance(a, Refusal) else {"predictions": a[:top_k]} for a in answers]
        return answered(request, results=results)

    @router.post(
        "/v1/embed", summary="Give unit vectors of a sample", openapi_extra=schemas.sample_body(),
        responses={200: {"model": schemas.Embedding}, **errors},
    )  # fmt: skip
    async def embed(request: Request) -> Response:
        """Vectors of length 1 in one shared space, of the whole sample (`fused`) and of each modality alone."""
        return answered(request, embeddings=await service.ask(await read_one(request, options), "embed"))


def add_explain(router: APIRouter, service: Service, options: Options, labels: list[str]) -> None:
    @router.post(
        "/v1/explain", summary="Say what decided", openapi_extra=schemas.sample_body(),
        responses={200: {"model": schemas.Explanation}, **schemas.error_responses(*SAMPLE_ERRORS, "not_supported")},
    )  # fmt: skip
    async def explain(
        request: Request,
        label: Annotated[str | None, Query(description="the label to explain; by default the best one")] = None,
        details: Annotated[bool, Query(description="whether to look inside each modality, which takes longer")] = True,
        method: Annotated[
            Literal["integrated_gradients", "attention"] | None,
            Query(
                description="of the details: signed shares of the score, or where the model looked; by default "
                "the first, where the server can"
            ),
        ] = None,
        num_steps: Annotated[
            int, Query(ge=1, le=256, description="steps of integrated gradients; more is finer, and slower")
        ] = 32,
    ) -> Response:
        """The share of each modality in the score, and inside each what mattered."""
        if not can_explain(service.pipeline):
            raise Refusal("not_supported", "the served model has no explanations: save it anew with `train.py`.")
        if label is not None and label not in labels:
            raise BadInput("bad_parameter", f"`label` is {shown(label)}, which the model does not know.")
        given = await read_one(request, options)
        asked = {"label": label, "details": details}
        asked |= {"method": method, "num_steps": num_steps} if details else {}  # the same questions share a call
        return answered(request, explanation=await service.ask(given, "explain", **asked))


def add_search(router: APIRouter, service: Service, options: Options, model: str) -> None:
    """Add what only a server with an index can answer; without one there is no such address."""

    @router.post(
        "/v1/search", summary="Find the rows that are like a sample", openapi_extra=schemas.sample_body(),
        responses={200: {"model": schemas.Found}, **schemas.error_responses(*SAMPLE_ERRORS)},
    )  # fmt: skip
    async def search(
        request: Request,
        top_k: Annotated[int, Query(ge=1, le=50, description="rows to give, best first")] = 10,
    ) -> Response:
        """Which rows of the server's index are nearest to the sample? Give any subset of text, picture and sound."""
        vectors = await service.ask(await read_one(request, options), "embed")
        if vectors.keys() == {"fused"}:
            raise BadInput("nothing_given", "the text holds no word that the model reads: nothing to look for.")
        found = await service.find(np.array(vectors["fused"], np.float32), top_k)
        return answered(request, results=[row_of_json(row) for row in found], model=model)


def row_of_json(row: dict[str, Any]) -> dict[str, Any]:
    """Make a row fit for JSON: a date goes as text, NaN as null; of its file nobody learns the folder."""
    cells = json.loads(json.dumps(row["cells"] or {}, default=str), parse_constant=lambda _: None)
    return {**row, "file": PurePath(row["file"]).name, "cells": cells}


def add_description(router: APIRouter, info: dict[str, Any]) -> None:
    errors = schemas.error_responses("unauthorized", "internal_error")

    @router.get(
        "/v1/model", summary="Describe the model", responses={200: {"model": schemas.ModelInfo}, **errors}
    )  # fmt: skip
    async def model() -> Response:
        """Labels, modalities, limits, where the model comes from and how well it did."""
        return JSONResponse(info)

    @router.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> HTMLResponse:
        return HTMLResponse(docs_page(request.app.openapi()))


def add_operations(router: APIRouter, service: Service) -> None:
    """Add what an orchestrator and a monitor ask."""

    @router.get("/healthz", summary="Is the process alive?", responses={
        200: {"model": schemas.Status}, 503: {"model": schemas.Status, "description": "it has to be restarted"},
    })  # fmt: skip
    async def healthz() -> Response:
        alive = service.broken is None
        return JSONResponse({"status": "alive" if alive else "broken"}, 200 if alive else 503)

    @router.get("/readyz", summary="Does it take work?", responses={
        200: {"model": schemas.Status}, 503: {"model": schemas.Status, "description": "warming up or stopping"},
    })  # fmt: skip
    async def readyz() -> Response:
        state = "ready" if service.is_ready else "draining" if service.is_draining else "not ready"
        return JSONResponse({"status": state}, 200 if service.is_ready else 503)

    @router.get("/metrics", summary="Numbers for Prometheus", responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "exposition format"},
        **schemas.error_responses("unauthorized", "internal_error"),
    })  # fmt: skip
    async def metrics() -> Response:
        text, content_type = service.telemetry.exposition()
        return Response(text, headers={"content-type": content_type})


def close_api(router: APIRouter) -> None:
    """Add the end of the API: behind it stands the page, which would answer a mistyped address with HTML."""
    known = {route.path: ", ".join(sorted(route.methods)) for route in router.routes}

    async def unknown(request: Request) -> Response:
        path = request.scope["path"]
        if path not in known:
            raise Refusal("not_found", f"there is nothing at {shown(path)}: see /docs.")
        told = f"`{path}` does not take {shown(request.method)}: use {known[path]}."
        return refused(request, Refusal("method_not_allowed", told), {"Allow": known[path]})

    for path in [*known, "/v1/{rest:path}"]:
        router.add_route(path, unknown, include_in_schema=False)
        router.routes[-1].methods = None  # all, those that nobody has thought of yet too


# -- bodies -----------------------------------------------------------------------------------------------------------


async def read_one(request: Request, options: Options) -> dict[str, Any]:
    """Read a sample from a form or from JSON.

    Raises:
        BadInput: When the body is neither, or is not a sample.
    """
    kind = media_type(request)
    if kind == "application/json":
        return sample_of_json(await read_json(request))
    if kind in ("multipart/form-data", "application/x-www-form-urlencoded"):
        return await read_form(request, options)
    raise BadInput(
        "unsupported_media_type", f"the body is {shown(kind or 'nothing')}: send application/json or "
        "multipart/form-data."
    )  # fmt: skip


async def read_many(request: Request, options: Options) -> list[dict[str, Any] | Refusal]:
    """Read a list of samples; in the place of a bad one stands why."""
    if (kind := media_type(request)) != "application/json":
        raise BadInput("unsupported_media_type", f"the body is {shown(kind or 'nothing')}: send application/json.")
    rows = await read_json(request)
    if not isinstance(rows, list):
        raise BadInput("wrong_type", f"the body must be a list of samples, got {json_type(rows)}.")
    if not rows:
        raise BadInput("nothing_given", "the list of samples is empty: give at least one.")
    if len(rows) > options.max_rows:
        raise BadInput(
            "too_many_rows", f"{len(rows):,} samples, the limit is {options.max_rows:,}: send several lists."
        )
    return [sample_or_refusal(row) for row in rows]


def sample_or_refusal(row: Any) -> dict[str, Any] | Refusal:
    try:
        return sample_of_json(row)
    except Refusal as refusal:
        return refusal


def media_type(request: Request) -> str:
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


async def read_json(request: Request) -> Any:
    body = await request.body()
    try:
        return await asyncio.to_thread(json.loads, body) if len(body) > LARGE_BODY_BYTES else json.loads(body)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else type(error).__name__
        raise BadInput("bad_json", f"the body is no usable JSON ({reason}).") from None


async def read_form(request: Request, options: Options) -> dict[str, Any]:
    try:
        async with request.form(max_files=4, max_fields=4, max_part_size=options.max_body_bytes) as form:
            items = form.multi_items()
            given = {name: await form_value(name, value) for name, value in items}
    except (HTTPException, ValueError) as error:
        reason = error.detail if isinstance(error, HTTPException) else error
        raise BadInput("bad_form", f"the form cannot be read ({reason}).") from None
    if len(given) < len(items):
        raise BadInput("bad_form", "the form has a name twice: give each of text, image and audio once.")
    return given


async def form_value(name: str, value: str | UploadFile) -> str | bytes | None:
    """Give a text, or the bytes of a file; what a browser sends for a file that was not chosen is None.

    A picture or sound that comes as text is read as in JSON.
    """
    if isinstance(value, str):
        return file_of_base64(name, value) if name in schemas.FILE else value
    if name == "text":
        raise BadInput("wrong_type", "`text` must be a string, got a file.")
    return await value.read() if value.filename or value.size else None


# -- answers ----------------------------------------------------------------------------------------------------------


def answered(request: Request, **content: Any) -> JSONResponse:
    return JSONResponse({**content, "request_id": request.state.request_id})


def refused(request: Request, refusal: Refusal, headers: dict[str, str] | None = None) -> JSONResponse:
    headers = {**refusal.headers(), **(headers or {})}
    return JSONResponse(refusal.body(request.state.request_id), refusal.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Answer every refusal in one shape; faults that are none are caught by the gate."""

    async def on_refusal(request: Request, refusal: Refusal) -> Response:
        return refused(request, refusal)

    async def on_bad_parameter(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        told = f"`{first['loc'][-1]}` is {shown(str(first.get('input')))}: {first['msg']}."
        return refused(request, BadInput("bad_parameter", told))

    app.add_exception_handler(Refusal, on_refusal)
    app.add_exception_handler(RequestValidationError, on_bad_parameter)
