"""How long a page of `clip3dreid serve` is waited for: to be seen, for an answer, and when thirty ask at once.

    python benchmarks/serve.py GALLERY CHECKPOINT CROPS [--questions 20] [--at-once 30] [--chromium /usr/bin/chromium]

GALLERY is what `clip3dreid extract` has filled (or anything that `gallery=` takes), CHECKPOINT its model, CROPS a
folder of pictures to ask with. The page is served in a process of its own, as a user starts it, and asked over HTTP
as a browser asks, pictures inside the question.

Printed: seconds from the start of the process to the first answer of its server, and to the page in a browser, with
processor seconds that the server has taken by then; from there to the loaded model and gallery; median and worst of
questions, by picture and by words, one after the other; and of as many at once, how many were answered and refused,
and how long all of them took.
"""

import argparse
import base64
import itertools
import json
import os
import subprocess
import sys
import time
import urllib.request
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from clip3dreid.io.pictures import find_pictures
from clip3dreid.report.tables import print_table

TEXT = "a tall, heavyset man with broad shoulders"
TICKS = os.sysconf("SC_CLK_TCK")


def processor_s(process: int) -> float:
    """Return the processor seconds of a process and of those that it has waited for."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / TICKS


class Asking:
    """Asks a page as a browser does."""

    def __init__(self, url: str) -> None:
        self.url = url
        with urllib.request.urlopen(f"{url}/config") as answer:
            self.config = json.load(answer)

    def _function(self, element: str, event: str) -> int:
        (component,) = (
            one["id"] for one in self.config["components"] if one["props"].get("elem_id") == element
        )
        return next(
            call["id"] for call in self.config["dependencies"] if [component, event] in call["targets"]
        )

    def ask(self, element: str, event: str, *inputs: Any) -> bool:
        """Return whether a question was answered; False where it was refused."""
        question = {
            "data": inputs, "fn_index": self._function(element, event), "session_hash": uuid.uuid4().hex
        }  # fmt: skip
        request = urllib.request.Request(
            f"{self.url}/gradio_api/run/predict",
            json.dumps(question).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request) as answer:
            _, message, hits, *_ = json.load(answer)["data"]
        if hits:
            return True
        assert "questions are waiting already" in message, message
        return False

    def pictures(self, crop: Path) -> bool:
        """Ask with a picture."""
        data = f"data:image/png;base64,{base64.b64encode(crop.read_bytes()).decode()}"
        return self.ask("drop", "submit", {"pictures": [{"name": crop.name, "data": data}]}, [], [], "")

    def words(self) -> bool:
        """Ask with a text."""
        return self.ask("search", "click", TEXT, [], [], "")


def seconds(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def seen(url: str, chromium: str) -> None:
    """Wait until the page is seen in a browser that is running already."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        start = time.perf_counter()
        page.goto(url)
        page.wait_for_selector("#drop .zone")
        print(f"the page is seen {time.perf_counter() - start:.2f} s after the browser asks for it")
        page.wait_for_selector("#people button", timeout=600_000)
        print(f"model and gallery are loaded {time.perf_counter() - start:.2f} s after it asks")
        browser.close()


def measure(arguments: argparse.Namespace) -> None:
    crops = [arguments.crops / name for name in find_pictures(arguments.crops, "crops").pictures]
    command = ["serve", f"gallery={arguments.gallery}", f"checkpoint={arguments.checkpoint}", "port=0"]
    start = time.perf_counter()
    with subprocess.Popen(
        [sys.executable, "-m", "clip3dreid", *command], stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            url = server.stdout.readline().split()[0]
            urllib.request.urlopen(url).close()
            print(
                f"the server answers {time.perf_counter() - start:.2f} s after its start, "
                f"with {processor_s(server.pid):.2f} s of a processor"
            )
            seen(url, arguments.chromium)
            asking = Asking(url)
            cycle = itertools.cycle(crops)
            rows = []
            for name, ask in (("a crop", lambda: asking.pictures(next(cycle))), ("words", asking.words)):
                first = seconds(ask)
                taken = [seconds(ask) for _ in range(arguments.questions)]
                rows.append([name, *(f"{value:.2f}" for value in (first, median(taken), max(taken)))])
            print_table("seconds to an answer", ["question", "first", "median", "worst"], rows)
            with ThreadPoolExecutor(arguments.at_once) as together:
                begun = time.perf_counter()
                done = list(together.map(asking.pictures, itertools.islice(cycle, arguments.at_once)))
                took = time.perf_counter() - begun
            print(
                f"{arguments.at_once} at once: {sum(done)} answered, {len(done) - sum(done)} refused, in {took:.1f} s"
            )
        finally:
            server.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("gallery", type=Path)
    parser.add_argument("checkpoint")
    parser.add_argument("crops", type=Path)
    parser.add_argument("--questions", type=int, default=20)
    parser.add_argument("--at-once", type=int, default=30)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    measure(parser.parse_args())


if __name__ == "__main__":
    main()
