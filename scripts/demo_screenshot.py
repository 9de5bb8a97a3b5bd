"""Take docs/demo.png: the page of `lightning-vfs demo` after it has made images of an example, in Chromium.

    python scripts/demo_screenshot.py [--models glyphs] [--support FOLDER] [--out docs/demo.png]

Needs `pip install 'lightning_vfs[browser]'` and Chromium.
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

from lightning_vfs.commands.demo_app import build, launch
from lightning_vfs.commands.demo_studio import Studio
from lightning_vfs.training.pretrained import BOXED


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="glyphs")
    parser.add_argument("--support", type=Path, default=BOXED / "glyphs" / "examples" / "0")
    parser.add_argument("--out", type=Path, default=Path("docs/demo.png"))
    options = parser.parse_args()
    page = build(Studio(options.models.split(",")))
    address = launch(page, server_name="127.0.0.1", server_port=None)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": 1200, "height": 900})
        tab.set_default_timeout(180_000)
        tab.goto(address)
        tab.set_input_files("#support input[type=file]", [str(file) for file in sorted(options.support.glob("*.png"))])
        tab.wait_for_selector("#support img")
        tab.click("#generate")
        tab.wait_for_function("document.querySelector('#said').innerText.includes('images in')")
        tab.wait_for_timeout(3000)
        tab.screenshot(path=options.out)
        browser.close()
    page.close()
    Image.open(options.out).convert("RGB").quantize(128).save(options.out, optimize=True)


if __name__ == "__main__":
    main()
