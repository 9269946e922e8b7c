"""Runs the commands of the pages in doc/source, in their order, as a reader would type them.

Each page has a shell of its own; all share a directory, the service that the page on installing sets up, and the
logins of a cloud. tox-like-scripts/docs gives the surroundings and says which pages, in which order.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time

import pages

END = "the command has ended with"
# A first build is among what may have to be waited for.
STAY_SECONDS = 3600

# What differs from run to run, in what is shown and in what was printed.
VARIES = [
    (re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"), "<uuid>"),
    (re.compile(r"\b[0-9a-f]{32}\b"), "<hex>"),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\dZ?"), "<time>"),
    (re.compile(r'(duration\\?"): ?[0-9.]+'), r"\1: <number>"),
    # Columns are as wide as what is in them.
    (re.compile(r"-{3,}"), "---"),
    (re.compile(r"[ \t]+"), " "),
    # JSON is written with and without spaces.
    (re.compile(r'(?<=[:,]) (?=["\[{\d…])'), ""),
]


def plain(line):
    for pattern, shown in VARIES:
        line = pattern.sub(shown, line)
    return line.strip()


def matches(shown, printed):
    """Whether what was printed is what the page shows."""
    shown = [plain(line) for line in shown if line.strip()]
    printed = [plain(line) for line in printed if line.strip()]
    parts = []
    for line in shown:
        if line == "…":
            parts.append(r"(?:[^\n]*\n)*?")
        else:
            parts.append(r"[^\n]*?".join(re.escape(part) for part in line.split("…")) + r"\n")
    return re.fullmatch("".join(parts), "".join(line + "\n" for line in printed)) is not None


class Shell:
    """A shell that keeps its variables from command to command."""

    def __init__(self, settings):
        environment = {key: value for key, value in os.environ.items() if not key.startswith("OS_")}
        environment |= settings["environment"]
        self.directory, self.scratch, self.staying = settings["directory"], settings["scratch"], []
        # Whoever is started in the background is started ignoring Ctrl-C, and hands that down.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            ["bash", "--noprofile", "--norc"], cwd=self.directory, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
        )
        self.run(f". {settings['prelude']}")

    def run(self, text):
        """Runs one command: its status and its lines."""
        path = os.path.join(self.scratch, ".command")
        output = os.path.join(self.scratch, ".output")
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)
        self.process.stdin.write(f'eval "$(cat {path})" </dev/null >{output} 2>&1; echo "{END} $?"\n')
        self.process.stdin.flush()
        for line in self.process.stdout:
            if line.startswith(END):
                with open(output, encoding="utf-8", errors="replace") as file:
                    return int(line.removeprefix(END)), file.read().splitlines()
        return None, ["the shell has ended"]

    def start(self, text, shown):
        """Starts a command that goes on, as in a terminal of its own, and waits until it prints a text."""
        number = len(self.staying)
        output, status = (os.path.join(self.scratch, f".{kind}-{number}") for kind in ("staying", "status"))
        # A shell in the background lets programs ignore Ctrl-C, unless it gives each a group of its own; and the shell
        # that waits for the program is of the group too.
        done, printed = self.run(
            f"set -m; {{ trap : INT; {text}\necho $? >{status}; }} >{output} 2>&1 & staying=$!; set +m; echo $staying")
        if done != 0:
            return f"{text}\ncould not be started:\n" + "\n".join(printed)
        self.staying.append((text, int(printed[-1]), output, status))
        end = time.monotonic() + STAY_SECONDS
        while time.monotonic() < end and not tail(status):
            if shown in tail(output):
                return None
            time.sleep(0.2)
        return f"{text}\nshould print: {shown}\nand printed:\n" + tail(output)

    def interrupt(self):
        """Ends what goes on, as Ctrl-C does; what is wrong, if anything is."""
        for text, group, output, status in self.staying:
            if not tail(status):
                os.killpg(group, signal.SIGINT)
            end = time.monotonic() + 120
            while time.monotonic() < end and not tail(status):
                time.sleep(0.2)
            ended = tail(status).strip()
            if ended != "0":
                return f"{text}\nended with {ended or 'nothing'} after Ctrl-C:\n" + tail(output)
        return None

    def end(self):
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def tail(path):
    """The last of what is in a file, if there is one."""
    if not os.path.exists(path):
        return ""
    with open(path, encoding="utf-8", errors="replace") as file:
        return file.read()[-4000:]


class Tour:
    """The pages, run one after another."""

    def __init__(self, settings, only, without):
        self.settings, self.only, self.without = settings, only, without
        self.failed, self.ran, self.left = 0, 0, []

    def here(self, text):
        """What the page says, with the names of this run in place of those of a usual installation."""
        for usual, own in self.settings["here"].items():
            text = text.replace(usual, own)
        return text

    def there(self, line):
        for usual, own in self.settings["here"].items():
            line = line.replace(own, usual)
        return line

    def page(self, name):
        found = pages.read(name)
        for section in [*self.only, *self.without]:
            if section not in {block.section for block in found}:
                raise ValueError(f"{name} has no commands in a section: {section}")
        shell = Shell(self.settings)
        began, done = time.monotonic(), 0
        try:
            for block in found:
                if block.section in self.without or (self.only and block.section not in self.only):
                    continue
                if not self.block(shell, name, block):
                    return
                done += block.is_typed and "run by" not in block.marks
        finally:
            trouble = shell.interrupt()
            shell.end()
            if trouble:
                self.failed += 1
                print(f"not ok: {name}: {trouble}", flush=True)
        if done:
            print(f"ok: {name}: {done} blocks run ({time.monotonic() - began:.0f} s)", flush=True)

    def block(self, shell, name, block):
        """Runs a block; whether the page can go on."""
        where = f"{name}:{block.line}"
        if "as" in block.marks:
            shell.run(f"export OS_CLOUD={block.marks['as']}")
        if "file" in block.marks:
            path = os.path.join(shell.directory, self.here(block.marks["file"]))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w", encoding="utf-8") as file:
                file.write(self.here(block.body))
            return True
        if not block.is_typed:
            return True
        if "run by" in block.marks:
            self.left.append(f"{where}: {block.marks['run by'].split()[0]}")
            return True
        end = time.monotonic() + 60
        while True:
            trouble = self.attempt(shell, block)
            if trouble is None or "until" not in block.marks or time.monotonic() > end:
                break
            time.sleep(0.3)
        if trouble:
            self.failed += 1
            print(f"not ok: {where}: {trouble}", flush=True)
        return not trouble

    def attempt(self, shell, block):
        """Runs the commands of a block; what is wrong, if anything is."""
        commands = block.commands()
        for command in commands:
            self.ran += 1
            if "stays" in block.marks and command is commands[-1]:
                return shell.start(self.here(command.text), self.here(block.marks["stays"]))
            status, printed = shell.run(self.here(command.text))
            printed = [self.there(line) for line in printed]
            fails = "fails" in block.marks and command is commands[-1]
            if status is None or (status != 0) != fails:
                return f"{command.text}\nended with {status}:\n" + "\n".join(printed)
            if command.output and not matches(command.output, printed):
                shown = "\n".join(command.output)
                return f"{command.text}\nshould print:\n{shown}\nand printed:\n" + "\n".join(printed)
        return None


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--settings", required=True, help="file that says, in JSON, what differs on this machine")
    parser.add_argument("--only", action="append", default=[], metavar="SECTION", help="runs this section alone")
    parser.add_argument("--without", action="append", default=[], metavar="SECTION", help="passes this section over")
    parser.add_argument("pages", nargs="+", help="README.md, CONTRIBUTING.md or below doc/source, in their order")
    arguments = parser.parse_args()
    with open(arguments.settings, encoding="utf-8") as file:
        tour = Tour(json.load(file), arguments.only, arguments.without)
    for page in arguments.pages:
        tour.page(page)
    for left in tour.left:
        print(f"run elsewhere: {left}")
    print(f"{tour.ran} commands run here, {len(tour.left)} blocks by other parts", flush=True)
    return 1 if tour.failed else 0


if __name__ == "__main__":
    sys.exit(main())
