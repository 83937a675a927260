"""An HTTP server on a thread, with the parts that real services share: keys, rate limits, ETags, gzip."""

import gzip
import hashlib
import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Refused(Exception):
    """An answer that is no 200."""

    def __init__(self, status, body, headers=None):
        super().__init__(status)
        self.status, self.body, self.headers = status, body, headers or {}


class RateLimit:
    """So many requests within so many seconds; beyond them 429 with Retry-After."""

    def __init__(self, requests, seconds):
        self.requests, self.seconds = requests, seconds
        self.since = self.count = 0
        self.refused = 0

    def take(self):
        """Counts a request, or says in how many seconds the next one may come."""
        now = time.monotonic()
        if now - self.since >= self.seconds:
            self.since, self.count = now, 0
        if self.count < self.requests:
            self.count += 1
            return None
        self.refused += 1
        return max(1, round(self.since + self.seconds - now))


class Quiet(ThreadingHTTPServer):
    """Says nothing of clients that were killed between two requests."""

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)


class LocalServer:
    """`routes` maps paths to functions (query, headers) -> something for JSON. Use it in a `with`."""

    def __init__(self):
        self.routes = {}
        self.limit = None
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        # (path, query) of each request that was answered with 200 or 304.
        self.requests = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_):
                pass

            def do_GET(self):
                server.answer(self)

        self.http = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}"

    def __enter__(self):
        threading.Thread(target=self.http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()

    def answer(self, handler):
        """One request."""
        address = urlsplit(handler.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        route = self.routes.get(address.path)
        try:
            if route is None:
                raise Refused(404, {"error": "Not found"})
            with self.lock:
                wait = self.limit.take() if self.limit else None
            if wait is not None:
                raise Refused(429, {"cod": 429, "message": "Too many requests"}, {"Retry-After": str(wait)})
            answer = route(query, handler.headers)
            if callable(answer):
                # It writes the response itself: a stream.
                answer(handler)
                return
            self.reply(handler, address.path, query, *(answer if isinstance(answer, tuple) else (answer, {})))
        except Refused as refused:
            self.send(handler, refused.status, json.dumps(refused.body).encode(), refused.headers)
        except (BrokenPipeError, ConnectionResetError):
            # The client has gone: it was killed, or has lost patience.
            handler.close_connection = True

    def reply(self, handler, path, query, body, headers):
        """200 with a body and its ETag, or 304 if the client has that already."""
        body = json.dumps(body, ensure_ascii=False).encode()
        headers = {"ETag": f'"{hashlib.sha256(body).hexdigest()[:16]}"'} | headers
        with self.lock:
            self.requests.append((path, query))
        if handler.headers.get("If-None-Match") == headers["ETag"]:
            self.send(handler, 304, b"", headers)
        else:
            self.send(handler, 200, body, headers)

    def send(self, handler, status, body, headers):
        if "gzip" in handler.headers.get("Accept-Encoding", "") and len(body) > 500:
            body = gzip.compress(body, mtime=0)
            headers = headers | {"Content-Encoding": "gzip"}
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        if status != 304:
            handler.send_header("Content-Type", "application/json; charset=utf-8")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)
