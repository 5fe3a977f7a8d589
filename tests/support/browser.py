"""A headless Chromium, driven by its DevTools protocol over a pipe: no library, no open port.

    python -m tests.support.browser PAGE PNG [--width 390] [--height 1200] [--top 900] [--dark]

takes a picture, as those in docs/ were taken. Protocol: https://chromedevtools.github.io/devtools-protocol/; `--remote-debugging-pipe`
reads commands from descriptor 3 and answers on 4, each ended by a NUL.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAM = "chromium"
TIMEOUT_S = 60.0
"""For the program to start, and for each answer: CI's machines are small and busy."""
_QUIET = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
)
"""`--no-sandbox` since root has none, as in CI; what is loaded is our own page."""

Message = dict[str, Any]


def is_there() -> bool:
    return shutil.which(PROGRAM) is not None


class Browser:
    """One page at a time. `messages` are all events since `open`: console, log, network, exceptions."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._profile = tempfile.TemporaryDirectory(prefix="zerofleet-chromium-", ignore_cleanup_errors=True)
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        arguments = [
            PROGRAM,
            *_QUIET,
            f"--user-data-dir={self._profile.name}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        # By a shell: what Python passes on keeps its number, and those wanted are 3 and 4.
        redirect = f'exec "$@" 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", redirect, "bash", *arguments], pass_fds=(commands, answers), stderr=subprocess.DEVNULL
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._id, self._session = b"", 0, ""
        targets = self._ask("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self._ask("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._commands)
        os.close(self._answers)
        self._profile.cleanup()

    def open(self, page: Path, width: int, height: int = 900, is_dark: bool = False) -> None:
        """Returns when it is loaded. `width` in CSS pixels; below 600 as on a phone, which has two device pixels for each."""
        is_phone = width < 600
        shape = {"width": width, "height": height, "deviceScaleFactor": 2 if is_phone else 1, "mobile": is_phone}
        self._ask("Emulation.setDeviceMetricsOverride", **shape)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if is_dark else "light"}
        self._ask("Emulation.setEmulatedMedia", features=[scheme])
        self.messages.clear()
        self._ask("Page.navigate", url=page.resolve().as_uri())
        self._until(lambda: any(message["method"] == "Page.loadEventFired" for message in self.messages))

    def value(self, expression: str) -> Any:
        """Of JavaScript in the page."""
        answer = self._ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def picture(self, is_whole: bool = False) -> bytes:
        """PNG of what is seen, or of the whole page."""
        answer = self._ask("Page.captureScreenshot", format="png", captureBeyondViewport=is_whole)
        return base64.b64decode(answer["data"])

    @property
    def complaints(self) -> list[str]:
        """What the console and the log said, and what was thrown."""
        found = []
        for message in self.messages:
            match message["method"]:
                case "Runtime.consoleAPICalled":
                    found.append(f"console: {message['params']['args']}")
                case "Runtime.exceptionThrown":
                    found.append(f"thrown: {message['params']['exceptionDetails']['text']}")
                case "Log.entryAdded":
                    found.append(f"log: {message['params']['entry']['text']}")
        return found

    @property
    def requests(self) -> list[str]:
        """All that was fetched, the page first."""
        wanted = (m for m in self.messages if m["method"] == "Network.requestWillBeSent")
        return [message["params"]["request"]["url"] for message in wanted]

    # -- the protocol ----------------------------------------------------------------------------------------------
    def _ask(self, method: str, **parameters: Any) -> Message:
        self._id += 1
        request = {"id": self._id, "method": method, "params": parameters}
        if self._session:
            request["sessionId"] = self._session
        os.write(self._commands, json.dumps(request).encode() + b"\0")
        answers: list[Message] = []

        def is_answered() -> bool:
            return bool(answers)

        self._until(is_answered, answers)
        assert "error" not in answers[0], (method, answers[0]["error"])
        return dict(answers[0]["result"])

    def _until(self, is_done: Callable[[], bool], answers: list[Message] | None = None) -> None:
        """Reads until then; the answer to the newest command goes to `answers`."""
        deadline = time.monotonic() + TIMEOUT_S
        with selectors.DefaultSelector() as selector:
            selector.register(self._answers, selectors.EVENT_READ)
            while not is_done():
                assert selector.select(deadline - time.monotonic()), f"{PROGRAM} did not answer within {TIMEOUT_S:g} s"
                data = os.read(self._answers, 1 << 20)
                assert data, f"{PROGRAM} has ended: exit code {self._process.wait()}"
                *messages, self._buffer = (self._buffer + data).split(b"\0")
                for message in map(json.loads, messages):
                    if "method" in message:
                        self.messages.append(message)
                    elif message["id"] == self._id and answers is not None:
                        answers.append(message)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path)
    parser.add_argument("png", type=Path)
    parser.add_argument("--width", type=int, default=1280)
    parser.add_argument("--height", type=int, help="of the picture; the whole page without")
    parser.add_argument("--top", type=int, default=0, help="of the picture, where it has a height")
    parser.add_argument("--dark", action="store_true")
    options = parser.parse_args()
    with Browser() as browser:
        browser.open(options.page, options.width, options.height or 900, options.dark)
        browser.value(f"scrollTo(0, {options.top})")
        options.png.write_bytes(browser.picture(is_whole=options.height is None))


if __name__ == "__main__":
    main()
