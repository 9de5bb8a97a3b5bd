"""The page of `lightning-vfs demo` in a browser, as visitors use it: Playwright with the Chromium of the system."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lightning_vfs import VFSDDPM
from tests.conftest import tiny_config

pytest.importorskip("playwright", reason="run by `make test-browser`")
pytestmark = pytest.mark.browser

SECONDS = 120_000
"""Milliseconds that the page has for an answer, on a busy machine."""


@pytest.fixture(scope="module")
def page_address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page, served by the command for a tiny model."""
    folder = tmp_path_factory.mktemp("demo")
    VFSDDPM(tiny_config(encoder={"context_dropout": 0.1})).save_pretrained(folder / "model")
    command = [
        sys.executable,
        "-m",
        "lightning_vfs",
        "demo",
        "--models",
        "model",
        "--port",
        "0",
        "--any_model",
        "false",
    ]
    server = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert server.stdout is not None
    said = server.stdout.readline()
    found = re.search(r"http://127\.0\.0\.1:\d+", said)
    assert found, said
    yield found[0]
    server.terminate()
    server.wait(30)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def visit(browser: Any, page_address: str) -> Iterator[Callable[[], Any]]:
    """Opens the page for another visitor."""
    contexts = []

    def opened() -> Any:
        contexts.append(browser.new_context(viewport={"width": 1280, "height": 1000}))
        page = contexts[-1].new_page()
        page.set_default_timeout(SECONDS)
        page.goto(page_address)
        page.wait_for_selector("#generate")
        return page

    yield opened
    for context in contexts:
        context.close()


@pytest.fixture
def photos(tmp_path: Path) -> list[str]:
    files = [str(tmp_path / f"{colour}.png") for colour in ("red", "navy")]
    for file in files:
        Image.new("RGB", (40, 30), Path(file).stem).save(file)
    return files


def drop(page: Any, files: list[str], where: str = "support") -> None:
    page.set_input_files(f"#{where} input[type=file]", files)
    page.wait_for_selector(f"#{where} img")


def generate(page: Any) -> None:
    page.click("#generate")
    page.wait_for_function("document.querySelector('#said').innerText.includes('images in')")


def says(page: Any, sentence: str) -> None:
    """Wait until a message has this sentence."""
    page.wait_for_function(
        "said => [...document.querySelectorAll('.toast-body')].some(e => e.innerText.includes(said))", arg=sentence
    )


def test_dropped_pictures_become_images(visit: Callable[[], Any], photos: list[str], tmp_path: Path) -> None:
    page = visit()
    drop(page, photos)
    page.click("#generate")
    page.wait_for_selector("#preview img")  # step by step
    page.wait_for_selector("#made img")
    assert page.inner_text("#said") == "8 images in 20 steps"
    assert page.locator("#made .thumbnail-item, #made .gallery-item").count() >= 8
    assert "lightning-vfs sample --pretrained model --support support --num_images 8" in page.inner_text("#command")
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "images.zip")
    with zipfile.ZipFile(tmp_path / "images.zip") as archive:
        assert {"0000.png", "0007.png", "support/0.png", "support/1.png", "command.txt"} <= set(archive.namelist())


def test_a_drawing_is_a_picture(visit: Callable[[], Any]) -> None:
    page = visit()
    page.locator("button.label-wrap", has_text="Draw").click()
    page.wait_for_selector("#sheet canvas")
    page.click("#sheet button[aria-label=Brush]")
    page.wait_for_timeout(1000)
    box = page.locator("#sheet canvas").first.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.4, box["y"] + box["height"] * 0.4)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + box["height"] * 0.6, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1000)
    page.click("#add-drawing")
    page.wait_for_selector("#support img")
    generate(page)


def test_errors_are_sentences(visit: Callable[[], Any], tmp_path: Path) -> None:
    page = visit()
    page.click("#generate")
    says(page, "Drop at least one picture of a class")
    assert "Drop at least one picture of a class" in page.inner_text("#said")
    page.locator("button.label-wrap", has_text="Draw").click()
    page.click("#add-drawing")
    says(page, "Draw something first")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    page.set_input_files("#support input[type=file]", [str(tmp_path / "broken.png")])
    page.wait_for_selector("#support img", state="attached")
    page.click("#generate")
    says(page, "broken.png cannot be read as a picture")


def test_a_comparison(visit: Callable[[], Any], photos: list[str]) -> None:
    page = visit()
    drop(page, photos[:1])
    page.locator("button.label-wrap", has_text="Compare").click()
    drop(page, photos[1:], "other")
    page.click("#compare")
    page.wait_for_selector("#comparison img")
    assert "grey levels from the nearest picture" in page.inner_text("#result")
    assert "With the other pictures the same noise" in page.inner_text("#result")


def test_two_visitors_at_once_get_their_own(visit: Callable[[], Any], photos: list[str]) -> None:
    pages = [visit(), visit()]
    for page, photo in zip(pages, photos, strict=True):
        drop(page, [photo])
    for page in pages:
        page.click("#generate")
    for page in pages:
        page.wait_for_function("document.querySelector('#said').innerText.includes('images in')")
    shown = [page.locator("#support img").first.get_attribute("src") for page in pages]
    assert "red" in shown[0] and "navy" in shown[1]


def test_no_file_of_the_server_is_readable(page_address: str, tmp_path: Path) -> None:
    (tmp_path / "secret.png").write_bytes(b"secret")
    for path in ("/etc/passwd", str(tmp_path / "secret.png"), "model/config.json", "../../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError) as raised:
            urllib.request.urlopen(f"{page_address}/gradio_api/file={path}")
        assert raised.value.code in (403, 404)
    from gradio_client import Client

    client = Client(page_address, verbose=False)
    inside = {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}
    with pytest.raises(Exception, match="(?i)not allowed|upload|error|allowed"):
        client.predict("model", [{"image": inside, "caption": None}], 5, 1, 2, 1, "ddim", 0, api_name="/generate")
    with pytest.raises(Exception, match=r"There is no model /etc here|not in the list of choices"):
        client.predict("/etc", [], 5, 1, 2, 1, "ddim", 0, api_name="/generate")
