"""Reads the pages of doc/source: their blocks of commands, and what a page says of each in comments.

A comment right before a block tells how the test treats it; readers do not see it:

    <!-- file: NAME -->      the block is written to that file
    <!-- not run: WHY -->    the block is left alone, and counted
    <!-- as: ACCOUNT -->     this block and those that follow run with that login of the cloud
    <!-- until -->           the commands are repeated until they print what the block shows, a minute long
    <!-- fails -->           the last command ends with a status other than 0

In a block `$ ` and `# ` begin a command, which goes on in the lines behind a backslash and behind `> `. What stands
below it is what it prints. Other lines are output. `…` stands for anything, on a line of its own for any number of lines.
"""

import re
from dataclasses import dataclass, field

BLOCK = re.compile(r"^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"<!-- (file|not run|as|until|fails)(?:: (.*?))? -->", re.DOTALL)
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
    found, before = [], 0
    for match in BLOCK.finditer(text):
        between = text[before:match.start()]
        # What stands between the comment and its block belongs to neither.
        tail = re.search(r"((?:<!-- .*? -->\s*)+)\Z", between, re.DOTALL)
        marks = {name: why.strip() for name, why in COMMENT.findall(tail[1])} if tail else {}
        indent = match["indent"]
        body = "".join(line.removeprefix(indent) for line in match["body"].splitlines(keepends=True))
        found.append(Block(text.count("\n", 0, match.start()) + 1, match["language"], body, marks))
        before = match.end()
    return found
