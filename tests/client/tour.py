"""What README.md tells users to type, as it has it. The documents are tests/docs's."""

import json
import os
import re
import subprocess


def blocks(site, path, heading, language):
    """The blocks of code in that language under a heading."""
    with open(os.path.join(site.root, path), encoding="utf-8") as file:
        section = file.read().split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)


def typed(site, script):
    """Runs it as demo, with names of our own in place of those that others may use."""
    demo = site.demo
    script = script.replace("/tmp", demo.directory).replace("my-functions", site.container + "_tour")
    path = os.path.dirname(demo.program) + os.pathsep + os.environ["PATH"]
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=demo.directory, capture_output=True, text=True, timeout=300,
        env=demo.environment | {"OS_CLOUD": demo.cloud, "PATH": path}, stdin=subprocess.DEVNULL,
    )


def readme(site):
    greet = next(block for block in blocks(site, "README.md", "Five minutes with curl", "bash") if "greet.zip" in block)
    done = typed(site, "\n".join([greet, *blocks(site, "README.md", "Five minutes with OpenStack", "bash")]))
    site.checks.equal("the tour in README.md can be typed", done.returncode, 0)
    for output in [{"greeting": "Good day, Taibai", "letters": 6}, {"greeting": "Good day, World", "letters": 5}]:
        site.checks.that(f"and says {output['greeting']}", json.dumps(output) in done.stdout, done.stdout + done.stderr)
