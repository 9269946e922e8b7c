"""Whether the documents name all that the code has: metrics, reasons of executions, rules."""

import json
import os
import re
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
PROGRAM = os.environ.get("TAIBAI_BIN", os.path.join(ROOT, "target", "debug", "taibai"))
failed = False


def read(*path):
    with open(os.path.join(ROOT, *path), encoding="utf-8") as file:
        return file.read()


def everything(directory, ending):
    for folder, _, files in os.walk(os.path.join(ROOT, directory)):
        for file in files:
            if file.endswith(ending):
                yield read(folder, file)


def check(name, exists, told):
    """Both ways: nothing is left out, and nothing is told that does not exist."""
    global failed
    left_out, made_up = exists - told, told - exists
    if exists and not left_out and not made_up:
        print(f"ok: {name}: {len(exists)}")
        return
    failed = True
    print(f"not ok: {name}: not told: {sorted(left_out)}; told and not there: {sorted(made_up)}")


def ask(*words):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TAIBAI_")}
    return subprocess.run(
        [PROGRAM, *words], check=True, capture_output=True, text=True, env=environment | {"TAIBAI_CONFIG": os.devnull}
    ).stdout


def main():
    made = set()
    for source in everything("src", ".rs"):
        # Where a metric is made, and not where a test reads it.
        made |= set(re.findall(r'(?:Opts::new|IntCounter::new|IntGauge::new|Gauge::new|Counter::new)\(\s*"(taibai_\w+)"', source))
    told = set(re.findall(r"^\| `(taibai_\w+)", read("doc", "source", "admin", "metrics.md"), re.MULTILINE))
    check("metrics are in the administration guide", made, told)

    reasons = set(re.findall(r'Self::\w+ => "(\w+)"', read("src", "model", "outcome.rs")))
    page = read("doc", "source", "user", "errors.md")
    told = set(re.findall(r"^\| `(\w+)` \|", page.partition("| `reason` |")[2], re.MULTILINE))
    check("reasons of executions are in the user's guide", reasons, told)

    rules = {rule["name"] for rule in json.loads(ask("policy", "list", "--json")) if rule["operations"]}
    told = set()
    for page in everything(os.path.join("api-ref", "source"), ".rst"):
        told |= set(re.findall(r"``(\w+(?::\w+)+)``", page))
    check("rules are in the API reference", rules, told & rules)
    return failed


if __name__ == "__main__":
    sys.exit(main())
