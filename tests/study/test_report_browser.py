"""The report in a real browser, driven over its debugging pipe: it draws, fetches nothing, says nothing wrong, fits."""

import fcntl
import json
import os
import select
import shutil
import signal
from pathlib import Path

import pytest

from wellposed.study.report import write_report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-pipe",
)
NAMES = ("binary", "digits", "regression", "hostile")
PLOTS = {"binary": 5, "digits": 5, "regression": 5, "hostile": 3}
INTERVALS = {"binary": 10, "digits": 6, "regression": 4, "hostile": 0}

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: install Debian's package chromium"),
]


class Browser:
    """A headless Chromium with one page: commands go down a pipe, answers and events come back on another."""

    def __init__(self, profile: Path) -> None:
        pipes = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in (*os.pipe(), *os.pipe())]
        self.down, self.up = os.fdopen(pipes[1], "wb", buffering=0), pipes[2]
        actions = [(os.POSIX_SPAWN_DUP2, pipes[0], 3), (os.POSIX_SPAWN_DUP2, pipes[3], 4)]
        actions += [(os.POSIX_SPAWN_OPEN, stream, os.devnull, os.O_WRONLY, 0) for stream in (1, 2)]
        arguments = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}"]
        self.process = os.posix_spawn(CHROMIUM, arguments, os.environ, file_actions=actions, setpgroup=0)
        os.close(pipes[0])
        os.close(pipes[3])
        self.events, self.buffer, self.number, self.session = [], b"", 0, None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **parameters):
        """Run a command of the browser and return its answer; events met on the way are kept."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        message |= {"sessionId": self.session} if self.session else {}
        self.down.write(json.dumps(message).encode() + b"\0")
        while (answer := self.receive()).get("id") != self.number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def receive(self):
        while b"\0" not in self.buffer:
            assert select.select([self.up], [], [], 60)[0], "the browser said nothing for a minute"
            part = os.read(self.up, 1 << 20)
            assert part, "the browser went away"
            self.buffer += part
        message, _, self.buffer = self.buffer.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, *, width: int, height: int = 900, scheme: str = "light") -> None:
        """Load a file in a window of the given size, and forget what was seen before."""
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.events.clear()
        self.send("Page.navigate", url=path.as_uri())
        while not any(e.get("method") == "Page.loadEventFired" for e in self.events):
            self.events.append(self.receive())

    def evaluate(self, expression: str):
        answer = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def complaints(self) -> list[object]:
        """Errors and warnings of the console, blocked content included, and exceptions of scripts."""
        self.evaluate("0")
        logged = [e["params"]["entry"] for e in self.events if e.get("method") == "Log.entryAdded"]
        thrown = [e["params"] for e in self.events if e.get("method") == "Runtime.exceptionThrown"]
        called = [e["params"] for e in self.events if e.get("method") == "Runtime.consoleAPICalled"]
        return logged + thrown + called

    def requests(self) -> list[str]:
        return [e["params"]["request"]["url"] for e in self.events if e.get("method") == "Network.requestWillBeSent"]

    def close(self) -> None:
        self.down.close()
        os.close(self.up)
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def reports(results, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reports")
    for name, result in results.items():
        write_report(result, folder / f"{name}.html")
    return folder


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", NAMES)
def test_report_opens_whole(browser, reports, name, width, scheme):
    path = reports / f"{name}.html"
    browser.open(path, width=width, scheme=scheme)
    assert browser.complaints() == []
    assert [url for url in browser.requests() if url not in (path.as_uri(), "data:,")] == []
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate("innerWidth") == width
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") == (scheme == "light")


@pytest.mark.parametrize("name", NAMES)
def test_every_plot_is_drawn_inside_its_frame(browser, reports, name):
    browser.open(reports / f"{name}.html", width=1280)
    plots = browser.evaluate(
        """[...document.querySelectorAll("svg.marks")].map(svg => {
            const frame = svg.getBoundingClientRect();
            const marks = [...svg.querySelectorAll("path:not(.grid)")].map(p => p.getBoundingClientRect());
            const inside = r => r.left > frame.left - 8 && r.right < frame.right + 8
                && r.top > frame.top - 8 && r.bottom < frame.bottom + 8;
            return {area: frame.width * frame.height, marks: marks.length, inside: marks.every(inside),
                    ticks: svg.parentElement.querySelectorAll(".tick").length};
        })"""
    )
    assert len(plots) == PLOTS[name]
    for plot in plots:
        assert plot["area"] > 10_000
        assert plot["marks"] >= 1
        assert plot["inside"]
        assert plot["ticks"] >= 4
    assert browser.evaluate("document.querySelectorAll('svg.strip').length") == INTERVALS[name]


def test_names_from_strangers_stay_text(browser, reports, hostile):
    browser.open(reports / "hostile.html", width=1280)
    browser.evaluate("new Promise(done => setTimeout(done, 50))")
    assert "owned" not in browser.evaluate("document.title.split('predicting')[0]")
    assert browser.evaluate("document.querySelectorAll('script:not([type])').length") == 1
    assert browser.evaluate("document.querySelectorAll('img, b, iframe, a, object').length") == 0
    shown = browser.evaluate("[...document.querySelectorAll('.columns tbody th')].map(cell => cell.textContent)")
    written = [c.name.replace("\x00", "\ufffd").replace("\ud800", "?") for c in hostile.data.columns]
    assert shown == written


def test_hovering_and_arrow_keys_show_the_point(browser, reports):
    browser.open(reports / "binary.html", width=400)
    x, y = browser.evaluate(
        """(() => { const plot = document.querySelector(".plot"); plot.scrollIntoView({block: "center"});
            const r = plot.getBoundingClientRect(); return [r.right - 5, r.bottom - 20]; })()"""
    )
    browser.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    tip = "document.querySelector('.tip:not([hidden])')"
    assert "epoch 60" in browser.evaluate(f"{tip}.textContent")
    assert browser.evaluate(f"{tip}.getBoundingClientRect().right") <= 400
    assert browser.evaluate("document.documentElement.scrollWidth") <= 400
    browser.evaluate("document.querySelector('.plot').focus()")
    for event in ("keyDown", "keyUp"):
        browser.send("Input.dispatchKeyEvent", type=event, key="ArrowLeft")
    assert "epoch 59" in browser.evaluate(f"{tip}.textContent")


def test_recipe_is_copied_as_it_stands(browser, reports, binary):
    browser.open(reports / "binary.html", width=1280)
    browser.evaluate("navigator.clipboard.writeText = async text => { window.copied = text; }")
    browser.evaluate("document.querySelector('.code button').click()")
    assert browser.evaluate("window.copied") == browser.evaluate("document.querySelector('.code code').textContent")
    assert browser.evaluate("window.copied.startsWith('from wellposed import WellposedClassifier')")
