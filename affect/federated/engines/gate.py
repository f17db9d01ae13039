"""The one door to a SuperLink from outside: what sites need, and nothing that could start a run.

Flower 1.41 answers all its interfaces at one port, and whoever reaches that port may register nodes
and start runs. The SuperLink therefore listens on its own machine alone, and this gate, with the
same certificate, lets through what SuperNodes say, which they sign.
"""

from __future__ import annotations

import logging
import socket
import ssl
from pathlib import Path

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from affect.errors import UserError

_log = logging.getLogger("affect.gate")
_FLEET = "/v1/fleet/"
_OWN_HEADERS = {"host", "content-length", "connection", "transfer-encoding"}
"""Of each connection: not passed on."""


def keep_gate(
    host: str, port: int, superlink: str, certificate: Path, key: Path, authority: Path
) -> None:
    """Let sites through to a SuperLink until the process is stopped.

    Args:
        host: address to listen at, such as 0.0.0.0.
        port: likewise.
        superlink: `host:port` of the SuperLink on this machine.
        certificate: of this machine, PEM.
        key: of the certificate, PEM.
        authority: certificate of who signed it, PEM.

    Raises:
        UserError: the port is in use, or a file cannot be read.
    """
    try:
        app = gate(f"https://{superlink}", ssl.create_default_context(cafile=authority))
        config = uvicorn.Config(
            app,
            ssl_certfile=certificate,
            ssl_keyfile=key,
            ws="none",
            log_level="warning",
            access_log=False,
        )
        config.load()
    except OSError as error:  # ssl.SSLError is one
        raise UserError(
            f"cannot use {certificate}, {key} and {authority}: {error.strerror or error}"
        ) from error
    with _bound(host, port) as listening:
        _log.info("lets sites through from %s:%d to %s", host, port, superlink)
        uvicorn.Server(config).run(sockets=[listening])


def gate(superlink: str, context: ssl.SSLContext) -> Starlette:
    """The app that passes on what SuperNodes say, and refuses the rest.

    Args:
        superlink: its URL.
        context: whose certificates it may show.
    """
    client = httpx.AsyncClient(base_url=superlink, verify=context, timeout=None)

    async def fleet(request: Request) -> Response:
        action = request.path_params["action"]
        if not action.replace("-", "").isalpha():
            return await refuse(request)
        headers = {k: v for k, v in request.headers.items() if k not in _OWN_HEADERS}
        try:
            reply = await client.post(
                _FLEET + action, content=await request.body(), headers=headers
            )
        except httpx.TransportError as error:
            _log.warning("the SuperLink does not answer: %s", error)
            return PlainTextResponse("the SuperLink does not answer", 503)
        if reply.is_error:
            _log.warning("%s from %s: refused with %d", action, _host(request), reply.status_code)
        kept = {k: v for k, v in reply.headers.items() if k not in _OWN_HEADERS}
        return Response(reply.content, reply.status_code, kept)

    async def refuse(request: Request) -> Response:
        _log.warning("%s from %s: not for outside", request.url.path, _host(request))
        return PlainTextResponse("not for outside", 403)

    everything = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    return Starlette(
        routes=[
            Route(_FLEET + "{action}", fleet, methods=["POST"]),
            Route("/{path:path}", refuse, methods=everything),
        ]
    )


def _host(request: Request) -> str:
    return request.client.host if request.client else "nowhere"


def _bound(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise UserError(
            f"cannot listen at {host}:{port}: {error.strerror or error}; choose another port"
        ) from error
