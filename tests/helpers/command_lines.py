"""Command lines that stand in the documents: those of fenced blocks, and those within sentences."""

from __future__ import annotations

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
DOCS = sorted(
    path
    for folder in (".", "docs", "benchmarks", "docker", "hostfiles")
    for path in (REPO / folder).glob("*.md")
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
_OPERATORS = {"&&", "||", ";", "|", "&"}
# What a reader is to put in, and something that can stand there.
_PLACEHOLDERS = {"<this repository>": str(REPO), "<name>": "data"}
_PARTS = {"A:B": "1:2", "FORMAT": "coco"}
_MESSAGES = {"mpirun has detected an attempt to run as root"}


@dataclass(frozen=True)
class Line:
    """A command of a document as words. Within a sentence it may be a part, without a flag that is needed."""

    document: str
    words: tuple[str, ...]
    whole: bool = True

    def __str__(self) -> str:
        return f"{self.document}: {shlex.join(self.words)}"


def blocks(language: str, text: str) -> list[str]:
    """What stands in the fenced blocks of a language."""
    return [content for name, content in FENCE.findall(text) if name == language]


def simple_commands(text: str) -> Iterator[tuple[str, ...]]:
    """The commands of a shell's text as words: without comments, redirections and what joins them."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="();<>|&")
        lexer.whitespace_split, words = True, []
        for word in lexer:
            if word in _OPERATORS:
                yield tuple(words)
                words = []
            elif word in (">", ">>", "<"):
                next(lexer)
            else:
                words.append(word)
        yield tuple(words)


def with_examples(text: str) -> str:
    """``text`` with something in place of what a reader is to put in."""
    for placeholder, example in _PLACEHOLDERS.items():
        text = text.replace(placeholder, example)
    return text


def fenced(document: Path) -> list[Line]:
    """The commands of the blocks of a document."""
    text = with_examples(document.read_text(encoding="utf-8"))
    found = [words for block in blocks("bash", text) for words in simple_commands(block)]
    return [Line(document.name, words) for words in found if words]


def spans(document: Path) -> list[Line]:
    """What stands between backquotes within the sentences of a document, and is more than a word.

    Of ``[--cuda]`` and ``bash|zsh`` it takes ``--cuda`` and ``bash``; dots stand for what is left out.
    """
    text = FENCE.sub("", with_examples(document.read_text(encoding="utf-8")))
    found = [span for part in text.split("\n\n") for span in _SPAN.findall(part)]
    lines = []
    for span in found:
        with contextlib.suppress(ValueError):  # a quotation mark without the other: no command
            words = [
                re.sub(r"^\[(.*)\]$", r"\1", word).split("|")[0]
                for word in shlex.split(span)
                if word != "..."
            ]
            if len(span.split()) > 1 and span not in _MESSAGES:
                lines.append(
                    Line(document.name, tuple(_PARTS.get(word, word) for word in words), whole=False)
                )
    return lines
