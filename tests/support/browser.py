"""Headless Chromium, driven over the DevTools protocol: a page, what it says on its console, and what it asks for."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from pointsman.app.processes import start_child
from support.waiting import eventually

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome") or ""
"""Debian's package `chromium`; empty when there is none."""

Json = dict[str, Any]


class PageError(Exception):
    """A script on the page threw."""


@dataclass
class Page:
    """One tab. `complaints`: errors and warnings of its console, scripts that threw, what a policy kept out."""

    socket: aiohttp.ClientWebSocketResponse
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    _answers: dict[int, asyncio.Future[Json]] = field(default_factory=dict)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def call(self, method: str, **params: Any) -> Json:
        """One command of the protocol."""
        number = next(self._numbers)
        self._answers[number] = future = asyncio.get_running_loop().create_future()
        await self.socket.send_json({"id": number, "method": method, "params": params})
        answer = await asyncio.wait_for(future, 60)
        if "error" in answer:
            raise PageError(f"{method}: {answer['error']['message']}")
        return dict(answer["result"])

    async def open(self, url: str) -> None:
        """Go to an address."""
        await self.call("Page.navigate", url=url)

    async def script(self, expression: str) -> Any:
        """The value of a JavaScript expression; promises are awaited."""
        found = await self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True, userGesture=True
        )
        if "exceptionDetails" in found:
            raise PageError(json.dumps(found["exceptionDetails"].get("exception", found["exceptionDetails"])))
        return found["result"].get("value")

    async def text(self, selector: str = "body") -> str:
        """What a part of the page shows; empty when it is not there or hidden (whose `innerText` is all its text)."""
        found = f"document.querySelector({json.dumps(selector)})"
        return str(await self.script(f"{found}?.checkVisibility() ? {found}.innerText : ''"))

    async def shows(self, text: str, selector: str = "body", *, timeout_s: float = 40) -> None:
        """Wait until a part of the page shows a text."""

        async def there() -> bool:
            return text in await self.text(selector)

        try:
            await eventually(there, timeout_s=timeout_s, what=f"{selector} shows {text!r}")
        except AssertionError as error:
            seen = await self.text(selector)
            raise AssertionError(f"{error}; it shows {seen[:2_000]!r}; complaints: {self.complaints}") from error

    async def press(self, key: str) -> None:
        """Press and release a key, such as Tab."""
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        more = {"text": {"Enter": "\r", " ": " "}[key]} if key != "Tab" else {}
        for kind in ("keyDown", "keyUp"):
            typed = more if kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    async def type(self, text: str) -> None:
        """Type into what has the focus."""
        await self.call("Input.insertText", text=text)

    async def picture(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """A PNG of the page at a size."""
        await self.size(width, height)
        scheme = "dark" if dark else "light"
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        shot = await self.call("Page.captureScreenshot", format="png")
        path.write_bytes(base64.b64decode(shot["data"]))

    async def size(self, width: int, height: int) -> None:
        """The size of the window's content."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False
        )

    async def listen(self) -> None:
        """Take what the browser sends, until it ends."""
        async for message in self.socket:
            if message.type is not aiohttp.WSMsgType.TEXT:
                break
            self._take(json.loads(message.data))

    def _take(self, message: Json) -> None:
        if "id" in message:
            future = self._answers.pop(message["id"])
            if not future.done():
                future.set_result(message)
            return
        params = message["params"]
        match message["method"]:
            case "Network.requestWillBeSent":
                self.asked.append(params["request"]["url"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] in {"error", "warning", "assert"}:
                self.complaints.append(json.dumps(params["args"]))
            case "Log.entryAdded" if params["entry"]["level"] in {"error", "warning"}:
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")


@asynccontextmanager
async def browser_page() -> AsyncIterator[Page]:
    """A fresh browser with one empty tab, ended with the block."""
    with tempfile.TemporaryDirectory(prefix="pointsman-browser-", ignore_cleanup_errors=True) as profile:
        child = await start_child(
            [CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
             "--disable-background-networking", "--disable-component-update", "--disable-extensions",
             "--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank"],
            name="chromium",
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        try:
            port_file = Path(profile) / "DevToolsActivePort"
            await eventually(
                lambda: port_file.exists() and port_file.read_text().count("\n"), timeout_s=60, what="Chromium listens"
            )
            port = port_file.read_text().split("\n")[0]
            async with aiohttp.ClientSession() as session:
                async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                    tabs = await response.json(content_type=None)
                tab = next(tab for tab in tabs if tab["type"] == "page")
                async with session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=64 << 20) as socket:
                    page = Page(socket)
                    listening = asyncio.create_task(page.listen())
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await page.call(f"{domain}.enable")
                    try:
                        yield page
                    finally:
                        listening.cancel()
                        with contextlib.suppress(asyncio.CancelledError):
                            await listening
        finally:
            await child.stop()
