"""Tables of what the program itself tells: its options, its policy rules, its commands.

    ```{taibai-options}
    ```
    ```{taibai-policy}
    ```
    ```{taibai-commands}
    ```

They are made whenever the documents are built, so they cannot say anything else than the program.
"""

import json
import os
import re
import subprocess

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", "..", ".."))
PROGRAM = os.environ.get("TAIBAI_BIN", os.path.join(ROOT, "target", "debug", "taibai"))


def ask(*words):
    """What `taibai` prints, with nothing of this machine's configuration."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TAIBAI_")}
    return subprocess.run(
        [PROGRAM, *words], env=environment | {"TAIBAI_CONFIG": os.devnull},
        check=True, capture_output=True, text=True, timeout=60,
    ).stdout


def sections(sample):
    """The sections of `taibai config sample`: name, what it is for, options as (name, default, format, help)."""
    about, found = [], []
    for line in sample.splitlines():
        if head := re.fullmatch(r"\[(\w+)\]", line):
            found.append((head[1], " ".join(about), []))
            about = []
        elif found and (option := re.fullmatch(r"#(\w+) =(?: (.*))?", line)):
            text = " ".join(about)
            text, kind = re.fullmatch(r"(.*) \(([\w ]+)\)", text).groups()
            found[-1][2].append((option[1], option[2] or "", kind, text))
            about = []
        elif line.startswith("#"):
            about.append(line[1:].strip())
        elif not line:
            about = []
    return found


class Generated(SphinxDirective):
    """Markdown that a program writes, read as if it stood in the page."""

    has_content = False
    optional_arguments = 1

    def run(self):
        node = nodes.container()
        text = StringList(self.markdown().splitlines(), source=f"what {PROGRAM} tells")
        self.state.nested_parse(text, self.content_offset, node, match_titles=1)
        return node.children


class Options(Generated):
    def markdown(self):
        lines = []
        for name, about, options in sections(ask("config", "sample")):
            lines += [f"## `[{name}]`", "", about, ""]
            for option, default, kind, text in options:
                shown = f"`{default}`" if default else "empty"
                lines += [f"`{option}`", "", f"> {text}", ">", f"> *{kind}*, {shown} unless set.", ""]
        return "\n".join(lines)


class Policy(Generated):
    def markdown(self):
        lines = []
        for rule in json.loads(ask("policy", "list", "--json")):
            lines += [f"`{rule['name']}`", "", f"> {rule['description']}", ">"]
            for operation in rule["operations"]:
                lines += [f"> `{operation['method']} {operation['path']}`", ">"]
            lines += [f"> Unless overridden: `{rule['default']}`", ""]
        return "\n".join(lines)


class Commands(SphinxDirective):
    """What each command says of itself, as it says it."""

    def run(self):
        return [node for words in self.commands([]) for node in self.section(words)]

    def commands(self, words):
        """The command itself, where it is one, and those below it."""
        told = ask(*words, "--help")
        below = told.partition("Commands:\n")[2].partition("\n\n")[0]
        names = [name for name in re.findall(r"^  ([\w-]+)", below, re.MULTILINE) if name != "help"]
        if not names:
            yield words
        for name in names:
            yield from self.commands([*words, name])

    def section(self, words):
        section = nodes.section(ids=["taibai-" + "-".join(words)])
        section += nodes.title(text="taibai " + " ".join(words))
        told = ask(*words, "--help").rstrip()
        section += nodes.literal_block(told, told, language="text")
        return [section]


def setup(app):
    app.add_directive("taibai-options", Options)
    app.add_directive("taibai-policy", Policy)
    app.add_directive("taibai-commands", Commands)
    return {"parallel_read_safe": True}
