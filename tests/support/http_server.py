"""A local HTTP server that serves one file, correctly or in one of the ways in which downloads fail."""

import contextlib
import gzip
import itertools
import socket
import threading
import time


def _response(body, status=b"200 OK", length=None, **headers):
    lines = [b"HTTP/1.1 " + status, b"Content-Length: " + (length or str(len(body)).encode())]
    lines += [f"{name.replace('_', '-')}: {value}".encode() for name, value in headers.items()]
    return b"\r\n".join([*lines, b"Connection: close", b"", body])


def _trickle(data):
    for n in range(len(data)):
        time.sleep(0.05)
        yield data[n : n + 1]


# Each returns the pieces of a response with `content`.
RESPONSES = {
    "well": lambda content: [_response(content)],
    "corrupt": lambda content: [_response(bytes(len(content)))],
    "truncated": lambda content: [_response(content)[: -len(content) // 2]],
    "stalled": lambda content: [_response(content)[: -len(content) // 2], None],
    "silent": lambda content: [None],
    "hangs up": lambda content: [],
    "endless": lambda content: itertools.chain([b"HTTP/1.1 200 OK\r\n\r\n"], itertools.repeat(bytes(1 << 16))),
    "too long": lambda content: [_response(content + b"x")],
    "gzip bomb": lambda content: [_response(gzip.compress(bytes(1 << 24)), Content_Encoding="gzip")],
    "not found": lambda content: [_response(b"", b"404 Not Found")],
    "control characters": lambda content: [_response(b"", b"503 \x1b[2J\x1b[31mgone\x07\x00")],
    "bad length": lambda content: [_response(content, length=b"abc")],
    "bad length, corrupt": lambda content: [_response(bytes(len(content)), length=b"abc")],
    "two lengths": lambda content: [_response(content, length=b"5, 6")],
    "bad status": lambda content: [_response(content, b"xyz OK")],
    "length twice": lambda content: [_response(content).replace(b"\r\n", b"\r\nContent-Length: 5\r\n", 1)],
    "trickling headers": lambda content: _trickle(b"HTTP/1.1 200 OK\r\nA: " + b"x" * 1000),
    "trickling body": lambda content: _trickle(_response(content)),
    "not http": lambda content: [b"\x1b[2J\x00\xff" * 100],
    "endless header": lambda content: itertools.chain([b"HTTP/1.1 200 OK\r\n"], itertools.repeat(b"A: B\r\n")),
    "redirect to nonsense": lambda content: [_response(b"", b"302 Found", Location="http://[")],
    "redirect to a bad port": lambda content: [_response(b"", b"302 Found", Location="http://localhost:abc/")],
    "redirect to no host": lambda content: [_response(b"", b"302 Found", Location="http://.example\x1b[2J/")],
    "redirect to a file": lambda content: [_response(b"", b"302 Found", Location="file:///etc/passwd")],
    "redirect to a long label": lambda content: [_response(b"", b"302 Found", Location=f"http://{'a' * 70}.example/")],
    "redirect with an endless body": lambda content: itertools.chain(
        [b"HTTP/1.1 302 Found\r\nLocation: /file\r\n\r\n"], itertools.repeat(bytes(1 << 16))
    ),
    "redirect to itself": lambda content: [_response(b"", b"302 Found", Location="/file")],
}


class Server:
    """Answers every request with `content`, as the next of `behaviours` says (keys of RESPONSES), or well after them.

    The last behaviour stays in force if it is a redirect. Attributes: `url`; `requests`, the number received so far.
    """

    def __init__(self, content, behaviours=()):
        self.content, self.behaviours, self.requests = content, list(behaviours), 0
        self._closing = threading.Event()
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/file"
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self):
        while True:
            connection, _ = self._socket.accept()
            with connection, contextlib.suppress(OSError):  # the client may hang up
                if self._closing.is_set():
                    return
                self._answer(connection)

    def _answer(self, connection):
        while not connection.recv(1 << 16).endswith(b"\r\n\r\n"):
            pass
        self.requests += 1
        behaviour = self.behaviours[0] if self.behaviours else "well"
        if not behaviour.startswith("redirect"):
            self.behaviours = self.behaviours[1:]
        for piece in RESPONSES[behaviour](self.content):
            if self._closing.is_set():
                return
            if piece is None:
                self._closing.wait()
            else:
                connection.sendall(piece)

    def close(self):
        self._closing.set()
        with contextlib.suppress(OSError):
            socket.create_connection(self._socket.getsockname()).close()
        self._thread.join()
        self._socket.close()


@contextlib.contextmanager
def serve(content, *behaviours):
    """Yields a running Server, and stops it at the end."""
    server = Server(content, behaviours)
    try:
        yield server
    finally:
        server.close()
