"""Headless Chromium, driven by the DevTools protocol over two pipes: no package, no port."""

import base64
import fcntl
import itertools
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome")
SECONDS = 20  # for any one answer
# Keys that are not typed characters -> their virtual key codes.
CODES = {"Home": 36, "End": 35, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Tab": 9}


def require_browser():
    """Returns the path of Chromium; skips the test where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    return found or pytest.skip(f"none of {', '.join(NAMES)} is installed")


class Browser:
    """A browser with one page. Attributes: `errors`, what the page threw or logged as an error, a list of str."""

    def __init__(self, folder):
        """folder: for the browser's profile."""
        command = [require_browser(), "--headless=new", "--remote-debugging-pipe", f"--user-data-dir={folder}"]
        command += "--no-sandbox --disable-gpu --disable-dev-shm-usage --no-first-run --hide-scrollbars".split()
        command += ["--disable-background-networking", "--disable-component-update", "about:blank"]
        low_in, self._out = os.pipe()
        self._in, low_out = os.pipe()
        # Chromium reads 3 and writes 4, which these must not be before they become them.
        its_in, its_out = (fcntl.fcntl(low, fcntl.F_DUPFD, 10) for low in (low_in, low_out))
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{its_in} 4>&{its_out}', "bash", *command],
            pass_fds=(its_in, its_out),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for descriptor in (low_in, low_out, its_in, its_out):
            os.close(descriptor)
        self._ids, self._read, self._session, self.errors = itertools.count(1), b"", None, []
        target = next(each for each in self._call("Target.getTargets")["targetInfos"] if each["type"] == "page")
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def _message(self):
        end = time.monotonic() + SECONDS
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._in], [], [], max(0, end - time.monotonic()))
            data = os.read(self._in, 2**16) if ready else b""
            if not data:
                raise AssertionError("the browser does not answer")
            self._read += data
        line, _, self._read = self._read.partition(b"\0")
        return json.loads(line)

    def _call(self, method, **params):
        """Sends a command and returns its result; notes errors that the page reports meanwhile."""
        id = next(self._ids)
        message = {"id": id, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._message()).get("id") != id:
            event, details = answer.get("method"), answer.get("params", {})
            if event == "Runtime.exceptionThrown":
                self.errors.append(json.dumps(details["exceptionDetails"]))
            elif event == "Log.entryAdded" and details["entry"]["level"] == "error":
                self.errors.append(details["entry"]["text"])
        assert "error" not in answer, answer
        return answer["result"]

    def open(self, path, width=1200, height=900, dark=False):
        """Shows a file in a window of this size, in pixels, under one of the two colour schemes."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", **screen)
        self._call("Page.navigate", url=pathlib.Path(path).resolve().as_uri())
        self.wait("document.readyState === 'complete'")

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression, or of the promise that it is."""
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition):
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + SECONDS
        while not self.evaluate(condition):
            assert time.monotonic() < end, f"not in {SECONDS} s: {condition}"
            time.sleep(0.02)

    def press(self, key, shift=False):
        """Presses and releases a key, by its JavaScript name."""
        event = {"key": key, "code": key, "windowsVirtualKeyCode": CODES[key], "modifiers": 8 if shift else 0}
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", type=kind, **event)

    def click(self, selector, x=0.5, y=0.5):
        """Clicks into an element, at fractions of its width and height."""
        left, top, width, height = self.evaluate(
            f"(() => {{ const node = document.querySelector({json.dumps(selector)}); "
            "node.scrollIntoView({block: 'center', behavior: 'instant'}); const box = node.getBoundingClientRect(); "
            "return [box.left, box.top, box.width, box.height]; })()"
        )
        event = {"x": left + x * width, "y": top + y * height, "button": "left", "clickCount": 1}
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, **event)

    def screenshot(self, path, full=True):
        """Saves a picture of the page as PNG."""
        picture = self._call("Page.captureScreenshot", captureBeyondViewport=full)
        pathlib.Path(path).write_bytes(base64.b64decode(picture["data"]))

    def close(self):
        os.close(self._out)  # Chromium ends with its pipe
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
