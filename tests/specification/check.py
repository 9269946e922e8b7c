"""Whether every promise of SPECIFICATION.md names a command that exists: a script, and tests that it would run."""

import os
import re
import shlex
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# Where the tests are of the parts that take a filter.
PLACES = {
    "unit": ["src", "migration/src", "protocol/src", "supervisor/src", "tests/model"],
    "driver": ["tests/driver"],
    "functional": ["tests/e2e"],
    "databases": ["tests/e2e"],
    "openstack": ["tests/openstack"],
    "crash": ["tests/crash"],
}
TEST = re.compile(r"^\s*#\[(?:tokio::|actix_web::|rstest::)?(?:test|rstest)\b")
FUNCTION = re.compile(r"^\s*(?:pub )?(?:async )?fn (\w+)")


def module(place, path):
    """The path of a file as Rust names it."""
    inside = os.path.relpath(path, os.path.join(ROOT, place))[: -len(".rs")]
    return [name for name in inside.split(os.sep) if name not in ("mod", "lib", "main")]


def tests_of(place):
    """The names of a place's tests, as a filter is compared with them."""
    for folder, _, files in os.walk(os.path.join(ROOT, place)):
        for file in files:
            if file.endswith(".rs"):
                yield from tests_in(os.path.join(folder, file), module(place, os.path.join(folder, file)))


def tests_in(path, outer):
    inner, is_test = [], False
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            if opened := re.match(r"mod (\w+) \{$", line):
                inner = [opened.group(1)]
            elif line == "}\n":
                inner = []
            elif TEST.match(line):
                is_test = True
            elif (found := FUNCTION.match(line)) and is_test:
                is_test = False
                yield "::".join([*outer, *inner, found.group(1)])


def fault(command):
    """What is wrong with a command; nothing where it can be run."""
    words = shlex.split(command, comments=True)
    script = words[0]
    if not re.fullmatch(r"tox-like-scripts/[a-z-]+", script) or not os.access(os.path.join(ROOT, script), os.X_OK):
        return f"there is no script {script}"
    part, arguments = os.path.basename(script), words[1:]
    if part == "databases" and arguments[:1] == ["--only"]:
        arguments = arguments[1:]
    if part in PLACES:
        known = [name for place in PLACES[part] for name in tests_of(place)]
        for argument in arguments:
            if not argument.startswith("--") and not argument.isdigit() and not any(argument in name for name in known):
                return f"{part} has no test {argument}"
    return None


def main():
    failed, promises = False, 0
    with open(os.path.join(ROOT, "SPECIFICATION.md"), encoding="utf-8") as file:
        lines = file.read().splitlines()
    for number, line in enumerate(lines, 1):
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) != 3 or cells[0] == "promise" or set(cells[0]) <= set("-: "):
            continue
        promises += 1
        commands = re.findall(r"`(tox-like-scripts/[^`]+)`", cells[2])
        wrong = [said for said in map(fault, commands) if said] if commands else ["no command checks it"]
        for said in wrong:
            failed = True
            print(f"SPECIFICATION.md:{number}: {said}")
    if not promises:
        failed = True
        print("SPECIFICATION.md: there is no table of promises")
    sys.exit(failed)


if __name__ == "__main__":
    main()
