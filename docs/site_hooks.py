"""Hooks of the docs site: pages of the root of the repository, and a list of the decisions.

README.md, CONTRIBUTING.md and CHANGELOG.md stay where people look for them; the site shows them as pages of its own. Links to
files of the code are shown as their names: the site does not carry the code.
"""  # noqa: INP001 - loaded by mkdocs

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
SHOWN = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages of the root, and what they are on the site."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the root, and the list of decisions."""
    for source, target in SHOWN.items():
        text = (ROOT / source).read_text(encoding="utf-8").replace("](docs/", "](")
        files.append(File.generated(config, target, content=_rewritten(text, target, {})))
    files.append(File.generated(config, "decisions/index.md", content=_decisions()))
    return files


def _decisions() -> str:
    lines = ["# Decisions", "", "Why it is as it is: context, decision, measured reason, consequence.", ""]
    for path in sorted((ROOT / "docs" / "decisions").glob("[0-9]*.md")):
        title = path.read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
        lines.append(f"- [{title}]({path.name})")
    return "\n".join(lines) + "\n"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Have links to the root's pages lead to those of the site."""
    return _rewritten(markdown, page.file.src_uri, {file.src_uri for file in files})


def _rewritten(markdown: str, page: str, known: Any) -> str:
    folder = posixpath.dirname(page)

    def link(match: re.Match[str]) -> str:
        words, target = match[1], match[2]
        path, hash_, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not path:
            return match[0]
        there = posixpath.normpath(posixpath.join(folder, path))
        if there.startswith("../"):
            there = there.removeprefix("../")
            shown = SHOWN.get(there)
            if shown is None:
                return words
            return f"[{words}]({posixpath.relpath(shown, folder or '.')}{hash_}{anchor})"
        if there in SHOWN and not folder:
            return f"[{words}]({SHOWN[there]}{hash_}{anchor})"
        if there == "decisions":
            return f"[{words}]({posixpath.relpath('decisions/index.md', folder or '.')})"
        if known and there not in known:
            return words
        return match[0]

    return LINK.sub(link, markdown)


SHIM = re.compile(r"https://unpkg\.com/iframe-worker/shim")


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """Have the search take what it needs without a server from the site itself."""
    return SHIM.sub(
        posixpath.relpath("assets/search-without-server.js", posixpath.dirname(page.file.dest_uri) or "."), output
    )


def on_post_template(output: str, template_name: str, config: MkDocsConfig) -> str:
    """Do the same for the page that says that there is no such page."""
    return SHIM.sub("assets/search-without-server.js", output)
