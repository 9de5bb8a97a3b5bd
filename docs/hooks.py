"""Hooks of the documentation's site: pages that stand at the repository's root, and links to what is not in docs/."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import get_plugin_logger
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "CONTRIBUTING.md", "CHANGELOG.md": "CHANGELOG.md"}
"""Files at the root that are pages of the site, and their names there."""

log = get_plugin_logger("links")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not in docs/."""
    for source, page in PAGES.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links work as in the repository: to another page, or to the file's place on the web."""
    sources = {name: source for source, name in PAGES.items()}
    uri = page.file.src_uri
    folder = ROOT if uri in sources else (ROOT / "docs" / uri).parent

    def resolved(match: re.Match[str]) -> str:
        target, hash_, anchor = match[1].partition("#")
        if not target or ":" in target:
            return match[0]
        path = Path(os.path.normpath(folder / target))
        if not path.exists():
            log.warning("%s links to %s, which is not in the repository", sources.get(uri, uri), target)
        inside = path.relative_to(ROOT).as_posix()
        if inside in PAGES or inside.startswith("docs/"):
            address = os.path.relpath(PAGES.get(inside, inside.removeprefix("docs/")), os.path.dirname(uri))
        else:
            address = f"{config.repo_url}/blob/main/{inside}"
        return f"]({address}{hash_}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", resolved, markdown)
