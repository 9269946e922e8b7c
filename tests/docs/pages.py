"""Reads the pages of doc/source: their blocks of commands, and what a page says of each in comments.

A comment right before a block tells how the test treats it; readers do not see it:

    <!-- file: NAME -->      the block is written to that file
    <!-- run by: PART -->    another script runs it: a part of tox-like-scripts/test, or .ci/run
    <!-- run by: PART NAME -->  the same; that part takes the block out of the page by this name (below)
    <!-- as: ACCOUNT -->     this block and those that follow run with that login of the cloud
    <!-- until -->           the commands are repeated until they print what the block shows, a minute long
    <!-- fails -->           the last command ends with a status other than 0
    <!-- stays: TEXT -->     the last command goes on until the page ends, which Ctrl-C tells it; the next block waits for
                             TEXT in what it prints

In a block `$ ` and `# ` begin a command, which goes on in the lines behind a backslash and behind `> `. What stands
below it is what it prints. Other lines are output. `…` stands for anything, on a line of its own for any number of lines.

A part that runs blocks of a page asks for each by its name, and sees at its end that it has left none out:

    pages.py block PART PAGE NAME RECORD    prints the commands, and notes in a file that they were asked for
    pages.py all PART RECORD                fails, and says which, where a block that is marked for the part is not there
"""

import os
import re
import sys
from dataclasses import dataclass, field

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
SOURCE = os.path.join(ROOT, "doc", "source")
# Pages elsewhere whose commands are run too.
OTHERS = ("README.md", "CONTRIBUTING.md")

BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (file|run by|as|until|fails|stays)(?:: (.*?))? -->", re.DOTALL)
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)
# Those that a reader would type.
TYPED = ("console", "bash", "sh", "shell")


@dataclass
class Command:
    text: str
    output: list = field(default_factory=list)


@dataclass
class Block:
    line: int
    language: str
    body: str
    marks: dict
    section: str = ""

    @property
    def is_typed(self):
        return self.language in TYPED

    def commands(self):
        """The commands with what each prints."""
        if self.language != "console":
            return [Command(self.body)]
        commands, goes_on = [], False
        for line in self.body.splitlines():
            if goes_on:
                commands[-1].text += "\n" + line.removeprefix("> ")
            elif line.startswith(("$ ", "# ")):
                commands.append(Command(line[2:]))
            elif line.startswith("> ") and commands and not commands[-1].output:
                commands[-1].text += "\n" + line[2:]
            elif commands:
                commands[-1].output.append(line)
            elif line.strip():
                raise ValueError(f"line {self.line}: output without a command: {line}")
            goes_on = line.endswith("\\") and not (commands and commands[-1].output)
        return commands


def blocks(text):
    """The blocks of a page, each with the comments that belong to it."""
    found, before, section = [], 0, ""
    for match in BLOCK.finditer(text):
        between = text[before:match.start()]
        # What stands between the comment and its block belongs to neither.
        tail = re.search(r"((?:<!-- .*? -->\s*)+)\Z", between, re.DOTALL)
        marks = {name: why.strip() for name, why in COMMENT.findall(tail[1])} if tail else {}
        # A comment of a shell script looks like a heading, and stands in a block.
        section = ([section] + HEADING.findall(between))[-1]
        indent = match["indent"]
        body = "".join(line.removeprefix(indent) for line in match["body"].splitlines(keepends=True))
        found.append(Block(text.count("\n", 0, match.start()) + 1, match["language"], body, marks, section))
        before = match.end()
    return found


def place(name):
    """Where a page is: one of the top directory, or below doc/source."""
    return os.path.join(ROOT if name in OTHERS else SOURCE, name)


def read(name):
    with open(place(name), encoding="utf-8") as file:
        return blocks(file.read())


def every_page():
    found = list(OTHERS)
    for folder, _, files in os.walk(SOURCE):
        found += [os.path.relpath(os.path.join(folder, file), SOURCE) for file in files if file.endswith(".md")]
    return sorted(found)


def left_to(part):
    """The page and the name of each block that this part has to run."""
    return [
        (page, block.marks["run by"].split()[1])
        for page in every_page() for block in read(page)
        if block.marks.get("run by", "").split()[:1] == [part] and " " in block.marks["run by"]
    ]


def main(action, part, *arguments):
    if action == "block":
        page, name, record = arguments
        wanted = [block for block in read(page) if block.marks.get("run by", "").split() == [part, name]]
        if len(wanted) != 1:
            return f"{page} has {len(wanted)} blocks that are marked: run by: {part} {name}"
        with open(record, "a", encoding="utf-8") as file:
            file.write(f"{page} {name}\n")
        print("\n".join(command.text for command in wanted[0].commands()))
        return 0
    with open(arguments[0], encoding="utf-8") as file:
        done = {tuple(line.split()) for line in file}
    left = [" ".join(block) for block in left_to(part) if block not in done]
    return f"{part} has not run: {'; '.join(left)}" if left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
