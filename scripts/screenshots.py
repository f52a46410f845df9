"""Make docs/images/web-*.png: the page idle, training and failed, from a real federation. Needs chromium."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

from fl_queue.store.embedded.server_pair import start
from tests.support.federation import Federation

IMAGES = Path(__file__).parent.parent / "docs" / "images"


def main() -> None:
    """Take all three."""
    IMAGES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, start(Path(folder) / "state") as redis:
        federation = Federation(redis, Path(folder), clients=3)
        command = [sys.executable, "-m", "fl_queue", "web", "--port", "0"]
        command += ["--state-dir", str(redis.state_dir)]
        web = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            assert web.stdout is not None
            take(federation, web.stdout.readline().strip())
        finally:
            web.terminate()
            web.wait()
            federation.close()


def take(federation: Federation, url: str) -> None:
    """Idle; in the middle of a run; after a run whose round no client answered in time."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"))
        page = browser.new_page(viewport={"width": 1000, "height": 900})
        page.goto(url)
        page.wait_for_selector("#clients tbody tr")
        page.screenshot(path=IMAGES / "web-idle.png")
        run = federation.begin("demo", "run.task=mnist-2nn", "run.rounds=40")
        federation.reach(run, 7)
        page.wait_for_selector("#accuracy canvas")
        page.screenshot(path=IMAGES / "web-training.png")
        federation.finish(run)
        failed = ("round.deadline_s=0.05", "round.grace_s=0", "round.max_abandoned=1")
        federation.finish(federation.begin("too-short", "train.epochs=200", *failed))
        page.wait_for_selector("#headline:has-text('failed')")
        page.screenshot(path=IMAGES / "web-failed.png")
        browser.close()


if __name__ == "__main__":
    main()
