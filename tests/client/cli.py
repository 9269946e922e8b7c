"""The `openstack` command as a user runs it, and one line for each thing that is checked."""

import json
import os
import subprocess
import time


class Checks:
    """Prints how each check went, and remembers whether one failed."""

    def __init__(self):
        self.failed = 0

    def that(self, name, holds, told=""):
        if holds:
            print(f"ok: {name}", flush=True)
        else:
            self.failed += 1
            print(f"not ok: {name}: {told}", flush=True)

    def equal(self, name, found, wanted):
        self.that(name, found == wanted, f"expected {wanted!r}, found {found!r}")


class Answer:
    """What one command printed."""

    def __init__(self, done):
        self.status = done.returncode
        self.out = done.stdout
        self.said = (done.stdout + done.stderr).strip()

    @property
    def json(self):
        try:
            return json.loads(self.out)
        except json.JSONDecodeError:
            raise AssertionError(f"no JSON: {self.said}") from None

    def columns(self):
        """The head of a list as it is printed, or the fields of a single thing."""
        rows = [
            [cell.strip() for cell in line.strip("|").split("|")]
            for line in self.out.splitlines()
            if line.startswith("|")
        ]
        if rows and rows[0] == ["Field", "Value"]:
            return [row[0] for row in rows[1:] if row[0]]
        return rows[0] if rows else []


class User:
    """Runs `openstack` with the login of one account in clouds.yaml."""

    def __init__(self, program, cloud, directory):
        self.program, self.cloud, self.directory = program, cloud, directory
        # Nothing of the caller's own login.
        self.environment = {
            key: value for key, value in os.environ.items()
            if not key.startswith("OS_") or key == "OS_CLIENT_CONFIG_FILE"
        }

    def run(self, *words):
        """Runs a command, whatever comes of it."""
        words = [str(word) for word in words]
        return Answer(subprocess.run(
            [self.program, "--os-cloud", self.cloud, *words], cwd=self.directory, env=self.environment,
            capture_output=True, text=True, timeout=330, stdin=subprocess.DEVNULL,
        ))

    def do(self, *words):
        """Runs a command that has to succeed."""
        answer = self.run(*words)
        if answer.status != 0:
            raise AssertionError(f"openstack {' '.join(map(str, words))}: {answer.said}")
        return answer

    def json(self, *words):
        return self.do(*words, "-f", "json").json

    def execute(self, function, *words):
        """Runs a function and waits; the execution, with its result decoded."""
        execution = self.json("function", "execution", "create", "--function", function, *words)
        execution["result"] = json.loads(execution["result"])
        return execution


def eventually(what, holds, seconds=60):
    """Asks until it holds."""
    until = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > until:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.5)
