"""Pages of the site that lie outside docs/: README.md is its start, and what documents link to comes along.

mkdocs (mkdocs.yml names this file) knows one folder. On GitHub the same links lead to the files themselves.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath, relpath

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

REPO = Path(__file__).resolve().parents[1]
START = "README.md"
ELSEWHERE = "repository/"  # on the site, what is outside docs/
LINK = re.compile(r"(?<=\]\()(?!https?:|mailto:|#)([^)#\s]+)")

# What is English on translated pages too.
THEMES = ("<header", '<div class="md-sidebar md-sidebar--primary"', "<footer")


def place(path: str) -> str:
    """Where a file of the repository lies on the site; its path from the top folder."""
    if path == START:
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else ELSEWHERE + path


def links(path: str) -> list[str]:
    """Files of the repository that a document links to."""
    found = LINK.findall((REPO / path).read_text(encoding="utf-8"))
    return [normpath(PurePosixPath(path).parent / link) for link in found]


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add what lies outside docs/ and is linked to, from the start page on."""
    waiting, seen = [START, *(f"docs/{f.src_uri}" for f in files.documentation_pages())], set[str]()
    while waiting:
        path = waiting.pop()
        if path in seen or not (REPO / path).is_file():
            continue
        seen.add(path)
        if not path.startswith("docs/"):
            files.append(File.generated(config, place(path), abs_src_path=str(REPO / path)))
        waiting += links(path) if path.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links between files of the repository become links between places of the site."""
    here = page.file.src_uri
    source = START if here == place(START) else f"docs/{here}"
    if here.startswith(ELSEWHERE):
        source = here.removeprefix(ELSEWHERE)

    def moved(link: re.Match[str]) -> str:
        target = place(normpath(PurePosixPath(source).parent / link[1]))
        return relpath(target, PurePosixPath(here).parent)

    return LINK.sub(moved, markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> str:
    """What the theme leaves to the mouse gets a name and a place for the keyboard; a page, its language."""
    if translated := re.search(r"\.([a-z]{2})\.md$", page.file.src_uri):
        output = output.replace('<html lang="en"', f'<html lang="{translated[1]}"', 1)
        for part in THEMES:
            output = output.replace(part, f'{part} lang="en"', 1)
    output = output.replace('<div class="md-search"', '<div class="md-search" aria-label="Search"')
    return output.replace("<pre>", '<pre tabindex="0">')
