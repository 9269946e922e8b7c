"""Whether each block of commands that tox-like-scripts/docs leaves to another script is run by that script.

A part of the tests takes its blocks out of the pages, and fails where it has left one out (pages.py); here it is seen
that it does both, and that it is a part. What is not named is the script's own command, word by word.
"""

import os
import re
import sys

import pages


def script(name):
    """What a script is made of, or nothing."""
    path = os.path.join(pages.ROOT, name)
    if not os.path.isfile(path):
        return ""
    with open(path, encoding="utf-8") as file:
        return file.read()


def trouble(words, block):
    """What is wrong with a mark, if anything is."""
    if len(words) == 1:
        lines = [re.sub(r"\s+#.*", "", command.text) for command in block.commands()]
        left = [line for line in lines if line not in script(words[0])]
        return f"{words[0]} does not run: {left}" if left else None
    part, _ = words
    if not re.search(rf"^parts=\(.*\b{part}\b.*\)$", script("tox-like-scripts/test"), re.MULTILINE):
        return f"tox-like-scripts/test has no part {part}"
    text = script(f"tox-like-scripts/{part}")
    for needed in ("page_block ", "check_page_blocks"):
        if needed not in text:
            return f"tox-like-scripts/{part} has no call of {needed.strip()}"
    return None


def main():
    failed, seen = False, 0
    for page in pages.every_page():
        for block in pages.read(page):
            words = block.marks.get("run by", "").split()
            if not words:
                continue
            seen += 1
            wrong = trouble(words, block)
            if wrong:
                failed = True
                print(f"not ok: {page}:{block.line}: {wrong}")
    if not failed:
        print(f"ok: blocks that other scripts run are run there: {seen}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
