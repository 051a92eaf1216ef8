"""The HTTP application: routes, and what stands around them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import inazuma
from inazuma.serve import chat_completions, completions, decisions, embeddings, errors, responses, tokens
from inazuma.serve.metrics import CONTENT_TYPE, Metrics
from inazuma.serve.security import Gate, Security
from inazuma.serve.service import Service

PAGE = Path(__file__).parent / "page"
_POLICY = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
}
router = APIRouter()


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


def create_app(service: Service, security: Security | None = None) -> FastAPI:
    """The API of `service`, behind the gate."""
    security = security or Security()
    app = FastAPI(
        title="inazuma",
        version=inazuma.__version__,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        # Naming 4XX keeps FastAPI from documenting a 422 that is never sent.
        responses={"4XX": {"model": ErrorBody}, "5XX": {"model": ErrorBody}},
    )
    app.state.service = service
    app.openapi = lambda: _document(app, service)
    errors.install(app)
    for part in (router, completions.router, chat_completions.router, responses.router, embeddings.router):
        app.include_router(part)
    app.include_router(decisions.router)
    app.include_router(tokens.router)
    pages, paths = _page()
    app.include_router(pages)
    # The last one added is the first to see a request.
    app.add_middleware(Counted, metrics=service.metrics)
    # Whether the server is up needs no key, nor does the page, which asks for it.
    app.add_middleware(Gate, security=security, open_paths=["/health", *paths])
    if security.allow_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(security.allow_origins),
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["*"],
        )
    return app


def _document(app: FastAPI, service: Service) -> dict[str, Any]:
    """The OpenAPI document. Once the model is there, its name is the only value that `model` may have."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, routes=app.routes)
    if service.served is not None:
        for schema in document["components"]["schemas"].values():
            if schema.get("properties", {}).get("model", {}).get("type") == "string":
                schema["properties"]["model"]["enum"] = [service.served.name]
        app.openapi_schema = document
    return document


class Counted:
    """ASGI middleware: every answer in the metrics, by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics):
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        started, status = time.perf_counter(), 500

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self.app(scope, receive, counted)
        finally:
            path = getattr(scope.get("route"), "path", "none")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self.metrics.http_done(method, path, status, time.perf_counter() - started)


_METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}


@router.get("/health")
async def health(request: Request) -> Response:
    """200 when requests are answered; 503 with the reason while they are not."""
    status = request.app.state.service.status
    return JSONResponse({"status": status}, 200 if status == "ready" else 503)


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """For Prometheus; see `inazuma.serve.metrics`."""
    return Response(request.app.state.service.metrics.text(), media_type=CONTENT_TYPE)


@router.get("/v1/models")
async def models(request: Request) -> Response:
    """The one model there is."""
    return JSONResponse({"object": "list", "data": [_model(request.app.state.service)]})


@router.get("/v1/models/{model:path}")
async def model(model: str, request: Request) -> Response:
    """A model by its name, which may have slashes."""
    request.app.state.service.named(model)
    return JSONResponse(_model(request.app.state.service))


def _model(service: Service) -> dict[str, Any]:
    served = service.ready()
    return {
        "id": served.name,
        "object": "model",
        "created": service.started,
        "owned_by": "inazuma",
        "max_model_len": served.engine.context,
    }


def _page() -> tuple[APIRouter, list[str]]:
    """Routes to the files of the chat page, and their paths."""
    pages, paths = APIRouter(), []
    for file in sorted(PAGE.iterdir()) if PAGE.is_dir() else ():
        path = "/" if file.name == "index.html" else f"/{file.name}"
        pages.add_api_route(path, _file(file), include_in_schema=False)
        paths.append(path)
    return pages, paths


def _file(path: Path) -> Callable[[], Awaitable[Response]]:
    async def answer() -> Response:
        return FileResponse(path, headers=_POLICY)

    return answer
