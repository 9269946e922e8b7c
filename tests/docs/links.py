"""Whether every link inside the documents leads somewhere: in the files as they are, and in the pages built from them."""

import html.parser
import os
import re
import subprocess
import sys
import urllib.parse

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def anchor(heading):
    """The name that a heading of Markdown is linked to by."""
    text = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", text).replace(" ", "-")


def prose(path):
    with open(path, encoding="utf-8") as file:
        return re.sub(r"^ *```.*?^ *```$", "", file.read(), flags=re.MULTILINE | re.DOTALL)


def in_markdown():
    """Links of all files of Markdown in the repository that lead nowhere."""
    names = subprocess.run(
        ["git", "-c", f"safe.directory={ROOT}", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.splitlines()
    names = [name for name in names if os.path.exists(os.path.join(ROOT, name))]
    for name in names:
        path = os.path.join(ROOT, name)
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
            if urllib.parse.urlsplit(link).scheme:
                continue
            target, _, fragment = link.partition("#")
            found = os.path.normpath(os.path.join(os.path.dirname(path), target)) if target else path
            if not os.path.exists(found):
                yield f"{name}: {link}: there is no such file"
            elif fragment and found.endswith(".md"):
                headings = re.findall(r"^#+ (.*)$", prose(found), re.MULTILINE)
                if fragment not in map(anchor, headings):
                    yield f"{name}: {link}: there is no such heading"


class Page(html.parser.HTMLParser):
    """The links and the names of a page."""

    def __init__(self, path):
        super().__init__()
        self.links, self.names = [], set()
        with open(path, encoding="utf-8") as file:
            self.feed(file.read())

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if key in ("href", "src") and value and tag in ("a", "img"):
                self.links.append(value)
            elif key in ("id", "name") and value:
                self.names.add(value)


def in_pages(directory):
    pages = {}
    for folder, _, files in os.walk(directory):
        for file in files:
            if file.endswith(".html"):
                path = os.path.join(folder, file)
                pages[path] = Page(path)
    if not pages:
        yield f"{directory}: there are no pages"
    for path, page in pages.items():
        for link in page.links:
            parts = urllib.parse.urlsplit(link)
            # What the theme has on every page: links within openstack.org, and to scripts.
            if parts.scheme or parts.netloc or link.startswith("/") or link in ("#", "#myModal"):
                continue
            # What os-api-ref's script opens and closes.
            if parts.fragment.endswith("-selector"):
                continue
            target = os.path.normpath(os.path.join(os.path.dirname(path), urllib.parse.unquote(parts.path)))
            target = path if not parts.path else target
            if not os.path.exists(target):
                yield f"{os.path.relpath(path, directory)}: {link}: there is no such page"
            elif parts.fragment and target in pages and parts.fragment not in pages[target].names:
                yield f"{os.path.relpath(path, directory)}: {link}: the page has no such place"


def main():
    failed = False
    for name, trouble in (("links in Markdown lead somewhere", list(in_markdown())),
                          ("links in built pages lead somewhere", list(in_pages(sys.argv[1])))):
        print(f"not ok: {name}" if trouble else f"ok: {name}")
        for line in trouble:
            print(f"    {line}")
        failed = failed or bool(trouble)
    return failed


if __name__ == "__main__":
    sys.exit(main())
