"""Markdown pages for the tests: headings and their anchors, links, code blocks, commands and names of files."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += sorted((ROOT / "docs").rglob("*.md"))
FOLDERS = "benchmarks|configs|csrc|docs|examples|plugin|requirements|scripts|tests|tools"


@dataclass(frozen=True)
class Block:
    """A fenced block, or a comment `<!-- python ... -->` whose code is run and not shown."""

    language: str
    text: str
    line: int  # of its first line of text

    def __str__(self) -> str:
        return f"line_{self.line}"


def anchor_of(heading: str) -> str:
    """The anchor that a code host gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
    return re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-")


@dataclass(frozen=True)
class Page:
    path: Path

    def __str__(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def blocks(self) -> list[Block]:
        found = []
        pattern = re.compile(r"^(?:```(\S*)[^\n]*\n(.*?)^```$|<!-- (python)\n(.*?)^-->$)", re.MULTILINE | re.DOTALL)
        for match in pattern.finditer(self.text):
            group = 2 if match[3] is None else 4
            line = self.text.count("\n", 0, match.start(group)) + 1
            found.append(Block(match[group - 1], match[group], line))
        return found

    @cached_property
    def prose(self) -> str:
        """The text without fenced blocks and comments."""
        return re.sub(r"^```.*?^```$|<!--.*?-->", "", self.text, flags=re.MULTILINE | re.DOTALL)

    @cached_property
    def anchors(self) -> set[str]:
        seen: dict[str, int] = {}
        for heading in re.findall(r"^#+ (.+)$", self.prose, re.MULTILINE):
            anchor = anchor_of(heading)
            seen[anchor] = seen.get(anchor, 0) + 1
        return {anchor if not number else f"{anchor}-{number}" for anchor, n in seen.items() for number in range(n)}

    @cached_property
    def links(self) -> list[str]:
        """Targets of links and pictures that are no web addresses."""
        targets = re.findall(r"\]\(([^)\s]+)\)", self.prose)
        return [target for target in targets if not re.match(r"\w+://|mailto:", target)]

    @cached_property
    def commands(self) -> list[str]:
        """Command lines: of blocks for a shell or without a language, and quoted in the text."""
        lines: list[str] = []
        for block in self.blocks:
            if block.language in ("", "bash", "sh", "console"):
                lines += block.text.replace("\\\n", " ").splitlines()
        lines += [quoted.replace("\n", " ") for quoted in re.findall(r"`([^`]+)`", self.prose)]
        kept = []
        for line in lines:
            line = re.sub(r"^\$ ", "", line.strip())
            line = re.sub(r"\s+#.*$", "", line)
            line = re.sub(r"^(?:[A-Z_]+=\S+ )+", "", line)
            if re.match(r"(?:python|make|pip|tools/|scripts/|\.venv/bin/)\S* ?", line):
                kept.append(line)
        return kept

    @cached_property
    def files(self) -> list[str]:
        """Files and folders of the repository that the text or a command names."""
        named = re.findall(rf"(?<![\w./])(?:{FOLDERS})/[\w./*-]*", re.sub(r"\]\([^)]*\)", "]", self.text))
        return [name.rstrip(".") for name in named]
