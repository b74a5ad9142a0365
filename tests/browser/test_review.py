"""The review page in Chromium, opened from disk: two pairs are rejected with keys, and are not used then."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from anomalydiffusion_core.data.export import export_pairs
from anomalydiffusion_core.data.pairs import load_exported
from anomalydiffusion_core.data.review import DECISIONS, merge_decisions, write_review
from anomalydiffusion_core.evaluation.localization.sources import pairs_folder

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
PATIENCE_MS = 120_000


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    normal, mask = torch.full((1, 3, 40, 48), 0.25), torch.zeros(1, 1, 40, 48)
    mask[:, :, 10:20, 10:20] = 1
    images = torch.cat([normal + mask * level / 10 for level in range(1, 6)])
    count = len(images)
    batch = (images, mask.expand(count, -1, -1, -1), normal.expand(count, -1, -1, -1))
    export_pairs(tmp_path / "pairs", "part", "hole", *batch, [{"seed": i} for i in range(count)])
    return tmp_path / "pairs"


@pytest.fixture()
def page() -> Iterator[Any]:
    executable = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if executable is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine, and CI must have one: apt-get install chromium")
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=FLAGS, timeout=PATIENCE_MS)
        opened = browser.new_page(viewport={"width": 1000, "height": 800}, accept_downloads=True)
        opened.set_default_timeout(PATIENCE_MS)
        yield opened
        browser.close()


def test_two_pairs_rejected_with_keys_are_not_used(folder: Path, tmp_path: Path, page: Any) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("request", lambda request: problems.extend([request.url] * request.url.startswith("http")))
    page.goto(write_review(folder).as_uri())
    assert page.locator("article").count() == 5
    page.locator("article img").first.evaluate("image => image.decode()")
    for key in ("a", "r", "r", "u", "ArrowLeft"):  # the third pair is rejected; the decision on the fourth undone
        page.keyboard.press(key)
    assert page.locator("#counts").inner_text() == "1 accepted, 2 rejected, 2 undecided"
    assert page.locator("article.current").get_attribute("data-image") == "part/test/hole/002.png"
    assert page.locator("#note").inner_text() == "not saved yet"
    page.locator("#filter").select_option("rejected")
    assert page.locator("article:visible").count() == 2
    page.locator("#title").click()
    with page.expect_download() as download:
        page.locator("#save").click()
    assert download.value.suggested_filename == DECISIONS
    saved = tmp_path / "saved.json"
    download.value.save_as(saved)
    assert page.locator("#note").inner_text() == ""
    decisions = json.loads(saved.read_text())["decisions"]
    assert [name for name, value in decisions.items() if value == "rejected"] == [
        "part/test/hole/001.png",
        "part/test/hole/002.png",
    ]
    assert merge_decisions(folder, saved).rejected == 2
    assert [pair.image.name for pair in load_exported(folder)] == ["000.png", "003.png", "004.png"]
    assert pairs_folder(folder).count == 3
    page.goto(write_review(folder).as_uri())
    assert page.locator("#counts").inner_text() == "1 accepted, 2 rejected, 2 undecided"
    if shots := os.environ.get("ANOMALYDIFFUSION_SCREENSHOTS"):
        page.screenshot(path=f"{shots}/review.png")
    assert problems == []
