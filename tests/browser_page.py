"""What the browser tests share: a real server, a real Chromium, and a page on which nothing goes unnoticed.

Unusual: a test fails by itself when its page asks another host for anything, throws, or logs an error. Chromium's
microphone is a file with the two tones of a telephone's 5, so that a recording has a right answer.

Where there is no Chromium (`apt-get install chromium`), the tests skip and say so.
"""

import contextlib
import importlib.util
import io
import re
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import numpy as np
import pytest
import soundfile
from PIL import Image, ImageColor

from space.texts import tell

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MISSING = [name for name in ("playwright", "axe_playwright_python") if importlib.util.find_spec(name) is None]
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or bool(MISSING),
    reason=f"needs {', '.join(MISSING) or 'Chromium'} (apt-get install chromium; pip install -r requirements-dev.txt)",
)
TONES = (770, 1336)  # Hz; a telephone's 5
# What a click on the page leads to. (The stream of `queue/data` ends when all calls of the page have their answers.)
CALLS = ("queue/join", "queue/data", "/run/", "/call/", "/upload?")
LOCAL = ("127.0.0.1", "localhost")
TABS = ("try", "batch", "model")
# No fault of the page: its policy at work, and Gradio's camera, which asks how far an upload without a name is.
HARMLESS = ("violates the following Content Security Policy", "/upload_progress?upload_id=)", "Response (")
PATIENCE_MS = 45_000
LOOKS_FOCUSED = """() => {
    const element = document.activeElement;
    const look = () => {
        const style = getComputedStyle(element);
        return [style.outline, style.boxShadow, style.border, style.backgroundColor].join();
    };
    const focused = look();
    element.blur();
    const plain = look();
    element.focus({focusVisible: true});
    return focused !== plain;
}"""
STICKING_OUT = """() => {
    const width = document.documentElement.clientWidth;
    if (document.documentElement.scrollWidth <= width) return [];
    return [...document.querySelectorAll("body *")]
        .filter(element => element.getBoundingClientRect().right > width + 1)
        .map(element => element.outerHTML.slice(0, 120));
}"""


# -- what visitors bring ----------------------------------------------------------------------------------------------


def picture_file(path: Path, seed: int = 0, size: int = 48) -> Path:
    """Write coloured noise: a fresh model tells two of them apart."""
    noise = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).resize((size, size)).save(path)
    return path


def sound_file(path: Path, seconds: float = 0.4, sampling_rate: int = 16_000) -> Path:
    """Write the tones of a 5."""
    times = np.arange(round(seconds * sampling_rate)) / sampling_rate
    soundfile.write(path, sum(0.3 * np.sin(2 * np.pi * hertz * times) for hertz in TONES), sampling_rate)
    return path


# -- who serves -------------------------------------------------------------------------------------------------------


@dataclass
class Site:
    """A running server and what it keeps."""

    address: str
    feedback: Path
    log: Path

    def num_model_calls(self) -> float:
        """How often the model has run, whatever for."""
        lines = httpx.get(f"{self.address}/metrics").text.splitlines()
        counts = [line.split()[-1] for line in lines if line.startswith("mmfusion_model_seconds_count{")]
        return sum(map(float, counts))


def wait_until_ready(address: str, patience_seconds: float = 30) -> None:
    end = time.monotonic() + patience_seconds
    while httpx.get(f"{address}/readyz").status_code != 200:
        assert time.monotonic() < end, "the server never became ready"
        time.sleep(0.1)


# -- who visits -------------------------------------------------------------------------------------------------------


def launch(playwright, microphone: Path):
    """Start Chromium with a camera and a microphone that are none."""
    return playwright.chromium.launch(
        executable_path=CHROMIUM,
        args=[
            "--no-sandbox", "--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream",
            f"--use-file-for-fake-audio-capture={microphone}",
        ],
    )  # fmt: skip


@dataclass
class Visit:
    """One visitor with one page.

    Args:
        page: Playwright's.
        address: of the server.
        abroad: URLs on other hosts that the page asked for.
        blocked: such URLs that the page's policy kept it from asking.
        errors: what the page's scripts threw or logged.
        num_calls, num_open: calls of the server that a click led to, and how many of them are not answered.
    """

    page: object
    address: str
    abroad: list[str] = field(default_factory=list)
    blocked: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    num_calls: int = 0
    num_open: int = 0

    def __post_init__(self):
        self.page.set_default_timeout(PATIENCE_MS)
        self.page.on("request", lambda request: self._count(request, 1))
        self.page.on("requestfinished", lambda request: self._count(request, -1))
        self.page.on("requestfailed", lambda request: self._count(request, -1) or self._forget_if_blocked(request))
        self.page.context.on("request", lambda request: self._note(request.url))
        self.page.on("websocket", lambda socket: self._note(socket.url))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self._hear(message))

    def _note(self, url: str) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("data", "blob", "about") and parts.hostname not in LOCAL:
            self.abroad.append(url)

    def _forget_if_blocked(self, request) -> None:
        """A request that the page's own policy stopped is told of, although it was never sent."""
        if request.failure == "csp" and request.url in self.abroad:
            self.abroad.remove(request.url)
            self.blocked.append(request.url)

    def _count(self, request, change: int) -> None:
        if any(part in request.url for part in CALLS):
            self.num_calls += change > 0
            self.num_open += change

    def _hear(self, message) -> None:
        told = f"{message.text} ({message.location.get('url')})"
        if message.type == "error" and not any(part in told for part in HARMLESS):
            self.errors.append(told)

    # -- moving about -------------------------------------------------------------------------------------------------

    def open(self, query: str = "") -> "Visit":
        self.page.goto(f"{self.address}/{query}")
        self.at("text-input").wait_for()
        return self

    def at(self, element_id: str):
        return self.page.locator(f"#{element_id}")

    def button(self, element_id: str):
        """Give a button by the id that Gradio puts on it or around it."""
        return self.page.locator(f"button#{element_id}, #{element_id} button").first

    def go_to(self, tab: str) -> None:
        """Go to one of the `TABS`."""
        name = tell("en", f"tab.{tab}")
        self.page.get_by_role("tab", name=name, exact=True).filter(visible=True).click()

    def see_in(self, scheme: str) -> None:
        """Let the visitor's system prefer "light" or "dark", and wait until nothing fades any more."""
        self.page.emulate_media(color_scheme=scheme)
        self.page.wait_for_function(f"document.body.classList.contains('dark') === {str(scheme == 'dark').lower()}")
        self.page.wait_for_timeout(400)

    # -- the first tab ------------------------------------------------------------------------------------------------

    def give(self, text: str | None = None, image: Path | None = None, audio: Path | None = None) -> "Visit":
        """Type, and choose files as a visitor does in the dialog of the system."""
        if text is not None:
            self.at("text-input").locator("textarea, input").first.fill(text)
        for name, path in {"image": image, "audio": audio}.items():
            if path is not None:
                self.at(f"{name}-input").locator("input[type=file]").first.set_input_files(path)
                self.wait_for_file(name)
        return self

    def wait_for_file(self, name: str) -> None:
        self.at(f"{name}-input").get_by_role("button", name=re.compile("Clear|Remove")).wait_for()

    def record(self, seconds: float) -> None:
        sound = self.at("audio-input")
        sound.get_by_role("button", name="Record audio").click()
        sound.get_by_role("button", name="Record", exact=True).click()
        self.page.wait_for_timeout(1000 * seconds)
        sound.get_by_role("button", name="Stop", exact=True).click()
        sound.get_by_role("button", name="Play", exact=True).wait_for()

    def photograph(self) -> None:
        picture = self.at("image-input")
        picture.get_by_role("button", name="Capture from camera").click()
        picture.get_by_role("button", name="Click to Access Webcam").click()
        self.page.wait_for_function("document.querySelector('#image-input video')?.readyState >= 2")
        picture.get_by_role("button", name="capture photo").click()
        self.wait_for_file("image")

    def classify(self) -> str:
        """Press the button, and give the answer in large letters, once all reasons are there as well."""
        with self.settled():
            self.button("classify-button").click()
        return self.best()

    def refusal(self) -> str:
        """Press the button, and give the sentence that stands in the place of an answer."""
        with self.settled():
            self.button("classify-button").click()
        return self.at("answer").locator(".mm-error").inner_text()

    def best(self) -> str:
        return self.at("answer").locator(".mm-best strong").first.inner_text()

    def ranks(self) -> dict[str, float]:
        """Give all labels that are shown with their percentages, from top to bottom."""
        rows = self.at("answer").locator(".mm-ranks li")
        names, scores = (rows.locator(f".mm-{part}").all_inner_texts() for part in ("name", "score"))
        return {name: float(score.rstrip("%")) for name, score in zip(names, scores, strict=True)}

    def switch(self, name: str) -> None:
        with self.settled():
            self.at(f"use-{name}").get_by_role("checkbox").click()

    # -- waiting ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def settled(self):
        """Wait until what was begun inside has ended: calls of the page, and calls that follow from those."""
        num_before = self.num_calls
        yield
        end = time.monotonic() + PATIENCE_MS / 1000
        quiet = 0
        while quiet < 3:
            assert time.monotonic() < end, f"the page never came to rest ({self.num_open} open calls)"
            self.page.wait_for_timeout(50)
            is_quiet = self.num_calls > num_before and self.num_open == 0 and not self.is_pending()
            quiet = quiet + 1 if is_quiet else 0

    def is_pending(self) -> bool:
        return self.page.locator(".mm-pending").filter(visible=True).count() > 0

    # -- the other tabs, and feedback -------------------------------------------------------------------------------

    def pick(self, element_id: str, option: str) -> None:
        """Choose from a dropdown."""
        self.at(element_id).locator("input").first.click()
        self.page.get_by_role("option", name=option, exact=True).click()

    def run_batch(self, table: Path, *, stop: bool = False) -> None:
        """Classify a table; with `stop`, not to its end."""
        self.go_to("batch")
        with self.settled():
            self.at("batch-file").locator("input[type=file]").set_input_files(table)
        with self.settled():
            self.button("batch-run").click()
            if stop:
                self.button("batch-cancel").click()  # waits until it can be pressed

    def download(self, element_id: str) -> Path:
        with self.page.expect_download() as found:
            self.page.locator(
                f"a#{element_id}, #{element_id} a, button#{element_id}, #{element_id} button"
            ).first.click()
        return found.value.path()

    # -- how it looks, and what has the focus -------------------------------------------------------------------------

    def tab_to(self, element_id: str, max_stops: int = 60) -> None:
        """Press Tab until something inside an element has the focus."""
        for _ in range(max_stops):
            self.page.keyboard.press("Tab")
            if self.at(element_id).evaluate("element => element.contains(document.activeElement)"):
                return
        raise AssertionError(f"{max_stops} presses of Tab do not lead to `{element_id}`")

    def has_visible_focus(self) -> bool:
        """Say whether what has the focus looks different from how it looks without."""
        return self.page.evaluate(LOOKS_FOCUSED)

    def sticking_out(self) -> list[str]:
        """Give what makes the page scroll sideways."""
        return self.page.evaluate(STICKING_OUT)

    def contrast(self, part) -> float:
        """Give the contrast of a text with the ground of the page, as WCAG 2 defines it: from 1 to 21."""
        colours = part.evaluate(
            "part => [getComputedStyle(part).color, getComputedStyle(document.body).backgroundColor]"
        )
        dark, light = sorted(luminance(ImageColor.getrgb(colour)) for colour in colours)
        return (light + 0.05) / (dark + 0.05)

    def brightness(self) -> float:
        """Give how bright the ground of the page is, from 0 to 1."""
        shot = Image.open(io.BytesIO(self.page.screenshot())).convert("L")
        return shot.getpixel((3, shot.height // 2)) / 255


def luminance(colour: tuple[int, ...]) -> float:
    """Give the relative luminance of an sRGB colour, from 0 to 1."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (part / 255 for part in colour[:3])]
    return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def findings(page) -> list[str]:
    """Give what axe calls serious or critical, with the place of each."""
    from axe_playwright_python.sync_playwright import Axe

    violations = Axe().run(page).response["violations"]
    serious = [violation for violation in violations if violation["impact"] in ("serious", "critical")]
    return [
        f"{violation['id']}: {node['html'][:200]} {node['failureSummary'][:200]}"
        for violation in serious
        for node in violation["nodes"]
    ]
