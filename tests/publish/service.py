"""A small HTTP service for tests, on loopback: routes, a log of the requests, and faults that a test can ask for."""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import MappingProxyType
from typing import Any, ClassVar, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

PIECE = 1 << 16  # bytes read at a time
PATIENCE = 60.0  # seconds
SAID = {  # the words of the real hub, which its client knows, and ours
    401: "Invalid credentials in Authorization header",
    403: "This token may not write here",
}


class Request(NamedTuple):
    """A request that was made, for a test to count: how many bytes of its body came, and how it was answered."""

    method: str
    path: str
    size: int
    status: int  # 0: the connection was dropped instead


class Ask(NamedTuple):
    """A request as a route sees it. `names` are the named parts of its path."""

    method: str
    path: str
    names: dict[str, str]
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, which is JSON."""
        return json.loads(self.body)

    @property
    def token(self) -> str | None:
        """The bearer token, if any."""
        kind, _, token = self.headers.get("authorization", "").partition(" ")
        return token if kind.lower() == "bearer" else None


class Answer(NamedTuple):
    """What goes back."""

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = MappingProxyType({})


def as_json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Answer:
    """An answer in JSON."""
    return Answer(json.dumps(value).encode(), status, {"Content-Type": "application/json", **(headers or {})})


class Refusal(Exception):
    """An error answer. The hub's client looks for the message and the code in headers and body."""

    def __init__(self, status: int, message: str, code: str | None = None, **more: Any) -> None:
        super().__init__(message)
        headers = {"X-Error-Message": ascii(message)[1:-1]} | ({"X-Error-Code": code} if code else {})
        self.answer = as_json({"error": message, **more}, status, headers)


@dataclass
class Fault:
    """Something that goes wrong with requests whose method and whole path match: after `skip` of them, `times` times.

    Without a limit (`times=None`) it goes wrong until the test takes the fault away. With `status`, that is the answer
    and nothing is done; with `after_bytes`, the connection breaks once that much of the body was read; with
    `lost_answer`, everything is done but the answer never arrives. It strikes when those that it let pass are answered.
    """

    method: str
    path: str
    times: int | None = 1
    status: int | None = None
    after_bytes: int | None = None
    lost_answer: bool = False
    skip: int = 0
    passed: int = 0


Route = tuple[str, re.Pattern[str], str, Callable[[Any, Ask], Answer]]


def route(method: str, path: str, needs: str = "") -> Callable[[Any], Any]:
    """Mark a method of a service as the one that answers these requests, and say which right they need."""

    def mark(function: Any) -> Any:
        function.routes = [*getattr(function, "routes", []), (method, re.compile(path), needs, function)]
        return function

    return mark


@dataclass
class Service:
    """What answers: a subclass has the routes. One request is answered at a time, under `lock`."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)
    routes: ClassVar[list[Route]] = []

    def __init_subclass__(cls) -> None:
        cls.routes = [*cls.routes, *(one for member in vars(cls).values() for one in getattr(member, "routes", []))]

    def sent(self, method: str, path: str) -> int:
        """How many bytes of bodies came with the requests whose method and whole path match."""
        return sum(request.size for request in self.matching(method, path))

    def matching(self, method: str, path: str) -> list[Request]:
        """The requests so far whose method and whole path match."""
        with self.lock:
            return [one for one in self.requests if one.method == method and re.fullmatch(path, one.path)]

    def fault_for(self, method: str, path: str) -> Fault | None:
        """The fault that strikes this request, if any. It is used up by that."""
        with self.lock:
            for fault in self.faults:
                if fault.times == 0 or fault.method != method or not re.fullmatch(fault.path, path):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    fault.passed += 1
                    continue
                fault.times = fault.times and fault.times - 1
                return fault
        return None

    def wait_for_passed(self, fault: Fault) -> None:
        """A client that sends several requests at once would give up the others when the first of them fails."""
        until = time.monotonic() + PATIENCE
        while sum(one.status > 0 for one in self.matching(fault.method, fault.path)) < fault.passed:
            if time.monotonic() > until:
                return
            time.sleep(0.01)

    def answer(self, ask: Ask) -> Answer:
        """Find the route and let it answer."""
        with self.lock:
            for method, pattern, needs, function in self.routes:
                match = pattern.fullmatch(ask.path)
                if match and (ask.method == method or (ask.method == "HEAD" and method == "GET")):
                    names = {name: unquote(part or "") for name, part in match.groupdict().items()}
                    try:
                        self.authorize(ask, needs)
                        return function(self, ask._replace(names=names))
                    except Refusal as refusal:
                        return refusal.answer
            return Refusal(404, f"No such page: {ask.method} {ask.path}").answer

    def authorize(self, ask: Ask, needs: str) -> None:
        """Refuse a request that lacks the right which its route needs."""


class Handler(BaseHTTPRequestHandler):
    """Takes requests off a connection and hands them to the service."""

    protocol_version = "HTTP/1.1"
    server: Server

    def answer_request(self) -> None:
        """Read a request, answer it, or break the connection where a fault says so."""
        service, path = self.server.service, urlsplit(self.path).path
        fault = service.fault_for(self.command, path)
        if fault:
            service.wait_for_passed(fault)
        body, whole = self.read_body(fault.after_bytes if fault else None)
        if not whole or (fault and fault.after_bytes is not None):
            return self.drop(path, len(body))
        if fault and fault.status:
            answer = Refusal(fault.status, SAID.get(fault.status, "Made to fail")).answer
        else:
            query = {name: values[-1] for name, values in parse_qs(urlsplit(self.path).query).items()}
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = service.answer(Ask(self.command, path, {}, query, headers, body))
        if fault and fault.lost_answer:
            return self.drop(path, len(body))
        self.note(path, len(body), answer.status)
        self.send_response(answer.status)
        for name, value in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer_request

    def read_body(self, limit: int | None) -> tuple[bytes, bool]:
        """The body of the request, or no more of it than `limit`, and whether the client sent all of that."""
        wanted = int(self.headers.get("Content-Length", 0))
        wanted = wanted if limit is None else min(wanted, limit)
        pieces, left = [], wanted
        while left and (piece := self.rfile.read(min(left, PIECE))):
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces), left == 0

    def drop(self, path: str, size: int) -> None:
        """Break the connection."""
        self.note(path, size, 0)
        self.close_connection = True
        with suppress(OSError):  # the client may have left already
            self.connection.shutdown(socket.SHUT_RDWR)

    def note(self, path: str, size: int, status: int) -> None:
        """Put the request into the log, before the client can know of the answer."""
        with self.server.service.lock:
            self.server.service.requests.append(Request(self.command, path, size, status))

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the log of the service is for tests to read."""


class Server(ThreadingHTTPServer):
    """The sockets and threads. Clients keep connections open, so the end of the service has to close them."""

    daemon_threads = False  # so that server_close waits for the threads
    request_queue_size = 64

    def __init__(self, service: Service) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.service = service
        self.open: set[socket.socket] = set()
        service.url = f"http://127.0.0.1:{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection while it lasts."""
        with self.service.lock:
            self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """Forget the connection."""
        with self.service.lock:
            self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is no error; everything else is shown."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)

    def end(self) -> None:
        """Stop serving, close all connections, and wait for the threads."""
        self.shutdown()
        with self.service.lock:
            for connection in self.open:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
        self.server_close()


@contextmanager
def serving(service: Service) -> Iterator[None]:
    """Serve until the end of the block."""
    server = Server(service)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.end()
        thread.join()
