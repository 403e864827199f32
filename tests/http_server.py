"""A server on this machine that hands out one file, well or in one of the ways that a download goes wrong."""

import contextlib
import http.server
import threading


class Server:
    """Answers every request with `content`, behaving as the next entry of `behaviours` says, or well after the last.

    Behaviours: "ignore range"; "truncate" and "stall" (half of what was asked for, then the connection is closed or
    silent); "corrupt" (the right length, other bytes); "shift range" (a part other than the one asked for);
    "refuse range" (416); "not found" (404).
    Attributes: `url`; `ranges`, the Range header of each request so far, None without.
    """

    def __init__(self, content, behaviours=()):
        self.content, self.behaviours, self.ranges = content, list(behaviours), []
        self.closing = threading.Event()
        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self.url = f"http://127.0.0.1:{self.http.server_port}/file"

    def _handler(server):  # noqa: N805, the handler's own self is another
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                server.ranges.append(self.headers["Range"])
                server.answer(self, server.behaviours.pop(0) if server.behaviours else "well")

            def log_message(self, *arguments):
                pass

        return Handler

    def answer(self, request, behaviour):
        asked = request.headers["Range"] if behaviour != "ignore range" else None
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if behaviour == "not found":
            return self.head(request, 404, 0)
        if behaviour == "refuse range" or start >= len(self.content):
            return self.head(request, 416, 0)
        if behaviour == "shift range":
            start = 0
        body = self.content[start:]
        self.head(request, 206 if asked else 200, len(body), f"bytes {start}-{len(self.content) - 1}/*")
        if behaviour == "corrupt":
            body = bytes(len(body))
        if behaviour in ("truncate", "stall"):
            body = body[: len(body) // 2]
        request.wfile.write(body)
        if behaviour == "stall":
            request.wfile.flush()
            self.closing.wait()

    def head(self, request, status, length, content_range=None):
        request.send_response(status)
        request.send_header("Content-Length", str(length))
        if status == 206:
            request.send_header("Content-Range", content_range)
        request.end_headers()


@contextlib.contextmanager
def serve(content, *behaviours):
    """Yields a running Server, and stops it at the end."""
    server = Server(content, behaviours)
    thread = threading.Thread(target=server.http.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.http.shutdown()
        thread.join()
        server.http.server_close()
