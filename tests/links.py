"""Links of what a reader opens: README and its like, the site's sources, examples.

    python tests/links.py

asks for each external one, and prints those that do not answer; exit code 1 if there are any.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import Request, urlopen

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(([^)\s]+)\)|(?<![(\w\"'])(https?://[^\s)\"'`>\]]+)")
CODE = re.compile(r"```.*?```|`[^`]*`", re.DOTALL)
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)


def pages() -> list[Path]:
    """Files of text that hold links."""
    found = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("examples/*"), *ROOT.glob(".github/**/*.*")]
    return sorted(found)


def text_of(page: Path) -> str:
    """A notebook's cells, any other file as it is."""
    text = page.read_text(encoding="utf-8")
    if page.suffix != ".ipynb":
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def links(page: Path) -> Iterator[str]:
    """Targets, but for those in code."""
    for match in LINK.finditer(CODE.sub("", text_of(page))):
        yield match[1] or match[2].rstrip(".,;:")


def is_external(link: str) -> bool:
    return link.startswith(("http://", "https://", "mailto:"))


def anchors(page: Path) -> set[str]:
    """Names of its headings, as the site and code hosts make them."""
    titles = [re.sub(r"[^\w\s-]", "", title).strip().lower() for title in HEADING.findall(text_of(page))]
    return {re.sub(r"\s", "-", title) for title in titles}


def fault(page: Path, link: str) -> str | None:
    """Why an internal link leads nowhere."""
    name, _, anchor = link.partition("#")
    target = (page.parent / name).resolve() if name else page
    if not target.exists():
        return f"{target} does not exist"
    if anchor and anchor not in anchors(target):
        return f"{target} has no heading {anchor}"
    return None


def answer(address: str) -> str | None:
    """Why an address does not answer."""
    try:
        with urlopen(Request(address, headers={"User-Agent": "Mozilla/5.0"}), timeout=20):
            return None
    except OSError as error:
        return str(error)


def main() -> int:
    addresses = {link: page for page in pages() for link in links(page) if link.startswith("http")}
    dead = 0
    for address, page in sorted(addresses.items()):
        if reason := answer(address):
            dead += 1
            print(f"{page.relative_to(ROOT)}: {address}: {reason}", flush=True)
    print(f"{len(addresses)} external links, {dead} without an answer")
    return int(dead > 0)


if __name__ == "__main__":
    sys.exit(main())
