"""The samples of the API reference, compared with what a real service answers.

Every file in api-ref/source/samples is what one request of `scenario` sends or is answered with, ids, times and
what else differs from run to run apart. `--write` writes them anew. tox-like-scripts/docs starts the service, in
which demo has nothing yet, and runs this.
"""

import argparse
import datetime
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import uuid
import zipfile

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
REFERENCE = os.path.join(ROOT, "api-ref", "source")
SAMPLES = os.path.join(REFERENCE, "samples")

RUNTIME = "python3.11"
HELLO = 'def main(name="World", **kwargs):\n    print("somebody called")\n    return {"greeting": f"Hello, {name}"}\n'
SLEEP = "import time\n\n\ndef main(seconds=30, **kwargs):\n    time.sleep(seconds)\n"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
# What is sent in place of the pattern that the sample shows: half a day away, whenever this runs.
NIGHTLY = f"{datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=12):%-M %-H * * *}"
# What an execution took that has ended, in place of what it did.
TOOK = {
    "start": "warm", "queued_ms": 0.1, "starting_ms": 0.2, "run_ms": 31.0, "cpu_ms": 12.0,
    "peak_memory_bytes": 4194304,
}
LATER = ("updated_at", "next_execution_time", "first_execution_time")


class Steady:
    """Puts what is the same in every run in place of what is not."""

    def __init__(self, words):
        # Longer ones first, since one may be a part of another.
        self.words = sorted(words.items(), key=lambda word: -len(word[0]))
        self.ids = {}

    def text(self, text, sample):
        for found, shown in self.words:
            text = text.replace(found, shown)
        text = text.replace(NIGHTLY, "0 21 * * *")
        text = UUID.sub(lambda found: self.id(found[0], sample), text)
        text = TIME.sub("2026-01-02T03:04:05Z", text)
        text = re.sub(r'"duration":\d+\.\d+', '"duration":1.004' if "timeout" in text else '"duration":0.031', text)
        # The two ways in which a cancelled function can have been found.
        return text.replace('"duration":0.0,"reason":"cancelled"', '"duration":0.031,"reason":"cancelled"')

    def id(self, found, sample):
        """An id that follows from where it was seen first, so that a new sample changes no other."""
        if found not in self.ids.values():
            number = sum(name.split(" ")[0] == sample for name in self.ids)
            self.ids[f"{sample} {number}"] = found
        name = next(name for name, value in self.ids.items() if value == found)
        shown = hashlib.sha256(name.encode()).hexdigest()
        return str(uuid.UUID(shown[:32], version=4))

    def value(self, value, sample, key=None):
        if isinstance(value, dict):
            if value.get("result") is not None and TOOK.keys() <= value.keys():
                value = {**value, **TOOK, **({"run_ms": 1004.0} if value["reason"] == "timeout" else {})}
            return {key: self.value(item, sample, key) for key, item in value.items()}
        if isinstance(value, list):
            return [self.value(item, sample, key) for item in value]
        if not isinstance(value, str):
            return value
        if key == "worker_name":
            return "taibai-3f9c2b7a"
        if key in LATER and TIME.fullmatch(value):
            return "2026-01-02T03:04:06Z" if key == "updated_at" else "2026-01-02T21:00:00Z"
        return self.text(value, sample)


class Site:
    """The service, two callers, and the samples that were taken so far."""

    def __init__(self, arguments, directory):
        self.arguments, self.directory = arguments, directory
        self.endpoint = arguments.endpoint
        self.container = f"samples-{os.getpid()}"
        self.taken = {}
        self.tokens, words = {}, {
            self.container: "functions",
            arguments.endpoint: "http://controller:7070",
            arguments.echo_image: "docker.io/library/alpine:3",
        }
        for who, project in (("admin", "0a5b1c7e9d3f4e2c8b6a7d9e1f2c3b4a"), ("demo", "d2b7d8c9e0a14c0f9a3a5d1c6b7e8f90")):
            issued = json.loads(self.openstack(who, "token", "issue", "-f", "json"))
            self.tokens[who] = issued["id"]
            words[issued["project_id"]] = project
        self.steady = Steady(words)

    def openstack(self, who, *words):
        done = subprocess.run(
            [self.arguments.openstack, "--os-cloud", who, *words],
            cwd=self.directory, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        )
        if done.returncode != 0:
            raise AssertionError(f"openstack {' '.join(words)}: {done.stderr}")
        return done.stdout

    def ask(self, method, path, body=None, sample=None, who="demo", form=None, status=None, headers=None):
        """Sends a request; takes what it sends and is answered as samples where `sample` names them."""
        headers = {"X-Auth-Token": self.tokens[who], **(headers or {})} if who else dict(headers or {})
        data = None
        if form is not None:
            data, headers["Content-Type"] = multipart(form)
        elif body is not None:
            data, headers["Content-Type"] = json.dumps(body).encode(), "application/json"
        request = urllib.request.Request(self.endpoint + path, data=data, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                code, content = answer.status, answer.read()
        except urllib.error.HTTPError as error:
            code, content = error.code, error.read()
        wanted = status or {"POST": (200, 201, 202), "DELETE": (204,)}.get(method, (200,))
        if code not in (wanted if isinstance(wanted, tuple) else (wanted,)):
            raise AssertionError(f"{method} {path}: {code} {content.decode(errors='replace')}")
        answer = None
        if content:
            text = content.decode()
            try:
                answer = json.loads(text)
            except json.JSONDecodeError:
                answer = text
        if sample:
            if body is not None:
                self.take(f"{sample}-request.json", body)
            if answer is not None:
                self.take(f"{sample}-response.{'txt' if isinstance(answer, str) else 'json'}", answer)
        return answer

    def take(self, name, value):
        if isinstance(value, str):
            self.taken[name] = self.steady.text(value, name)
        else:
            shown = self.steady.value(value, name)
            self.taken[name] = json.dumps(shown, indent=2, ensure_ascii=False) + "\n"

    def until(self, what, path, holds, who="demo"):
        end = time.monotonic() + 60
        while True:
            answer = self.ask("GET", path, who=who)
            if holds(answer):
                return answer
            if time.monotonic() > end:
                raise AssertionError(f"not within 60 s: {what}: {answer}")
            time.sleep(0.1)


def multipart(form):
    cut, out = "samples", io.BytesIO()
    for name, value in form.items():
        file = '; filename="package.zip"' if isinstance(value, bytes) else ""
        out.write(f'--{cut}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode())
        out.write(value if isinstance(value, bytes) else str(value).encode())
        out.write(b"\r\n")
    out.write(f"--{cut}--\r\n".encode())
    return out.getvalue(), f"multipart/form-data; boundary={cut}"


def package(source):
    """A zip of main.py that is the same byte for byte in every run."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as file:
        file.writestr(zipfile.ZipInfo("main.py", (2026, 1, 2, 3, 4, 4)), source)
    return out.getvalue()


def scenario(site):
    """Every request that the reference shows. Ends with nothing left."""
    service(site)
    runtime = runtimes(site)
    hello, sleeper = functions(site, runtime)
    executions(site, hello, sleeper)
    versions(site, hello)
    aliases(site, hello)
    jobs(site, hello)
    webhooks(site, hello)
    quotas(site)
    for function in (hello, sleeper):
        site.ask("DELETE", f"/v1/functions/{function}")
    site.until("the functions' workers are gone", f"/v1/functions/{hello}/workers",
               lambda answer: not answer["workers"], who="admin")
    site.ask("DELETE", f"/v1/runtimes/{runtime}", who="admin")


def clean(site):
    """Removes what a scenario that broke off has left."""
    anything = tuple(range(200, 600))
    for list, key in (("webhooks", "webhooks"), ("jobs", "jobs"), ("aliases", "function_aliases"), ("functions", "functions")):
        for row in site.ask("GET", f"/v1/{list}")[key]:
            name = row["name"] if list == "aliases" else row["id"]
            site.ask("DELETE", f"/v1/{list}/{name}", status=anything)
    for row in site.ask("GET", "/v1/runtimes")["runtimes"]:
        if row["name"] == RUNTIME:
            site.ask("DELETE", f"/v1/runtimes/{row['id']}", who="admin", status=anything)
    site.openstack("demo", "container", "create", site.container)
    site.openstack("demo", "container", "delete", "--recursive", site.container)


def service(site):
    site.ask("GET", "/", sample="versions", who=None)
    site.ask("GET", "/v1", sample="v1", who=None)
    site.ask("GET", "/healthcheck", sample="healthcheck", who=None, headers={"Accept": "application/json"})
    nobody = str(uuid.UUID("7e1d0a4e6d0b4f7e8a390f3f0d5f2c10"))
    site.ask("GET", f"/v1/functions/{nobody}", sample="error", status=404)


def runtimes(site):
    new = {"image": site.arguments.image, "name": RUNTIME}
    id = site.ask("POST", "/v1/runtimes", new, "v1/runtime-create", who="admin")["id"]
    path = f"/v1/runtimes/{id}"
    site.until("the runtime is available", path, lambda answer: answer["status"] == "available")
    # The newest, since there may be others.
    site.ask("GET", "/v1/runtimes?limit=1&sort=created_at:desc", sample="v1/runtimes-list")
    site.ask("GET", path, sample="v1/runtime-show")
    site.ask("PUT", path, {"description": "Python 3.11"}, "v1/runtime-update", who="admin")
    site.until("its pool is full", path + "/pool", lambda answer: answer["capacity"] == {"total": 1, "available": 1},
               who="admin")
    site.ask("GET", path + "/pool", sample="v1/runtime-pool", who="admin")
    return id


def functions(site, runtime):
    def create(source, **fields):
        form = {"runtime_id": runtime, "code": '{"source": "package"}', "package": package(source), **fields}
        return form

    hello = site.ask("POST", "/v1/functions", form=create(HELLO, name="hello"), sample="v1/function-create")["id"]
    path = f"/v1/functions/{hello}"
    with open(os.path.join(site.directory, "function.zip"), "wb") as file:
        file.write(package(HELLO))
    site.openstack("demo", "container", "create", site.container)
    site.openstack("demo", "object", "create", site.container, "function.zip")
    code = {"source": "swift", "swift": {"container": site.container, "object": "function.zip"}}
    new = {"runtime_id": runtime, "name": "stored", "code": code}
    stored = site.ask("POST", "/v1/functions", new, "v1/function-create-swift")["id"]
    new = {"name": "echo", "code": {"source": "image", "image": site.arguments.echo_image}}
    image = site.ask("POST", "/v1/functions", new, "v1/function-create-image")["id"]
    for other in (stored, image):
        site.ask("DELETE", f"/v1/functions/{other}")
    site.ask("PUT", path, {"timeout": 15, "description": "greets"}, "v1/function-update")
    site.ask("GET", path, sample="v1/function-show")
    site.ask("GET", "/v1/functions", sample="v1/functions-list")
    site.ask("POST", path + "/scale_up", {"count": 1}, "v1/function-scale", who="admin")
    site.until("it has a worker", path + "/workers", lambda answer: answer["workers"], who="admin")
    site.ask("GET", path + "/workers", sample="v1/function-workers", who="admin")
    sleeper = site.ask("POST", "/v1/functions", form=create(SLEEP, name="sleep", timeout=1))["id"]
    return hello, sleeper


def executions(site, hello, sleeper):
    call = {"function_id": hello, "input": '{"name": "Taibai"}'}
    id = site.ask("POST", "/v1/executions", call, "v1/execution-create")["id"]
    done = site.ask("GET", f"/v1/executions/{id}", sample="v1/execution-show")
    assert done["status"] == "success", done
    site.ask("GET", f"/v1/executions/{id}/log", sample="v1/execution-log")
    site.ask("GET", f"/v1/executions?function_id={hello}", sample="v1/executions-list")
    failed = site.ask("POST", "/v1/executions", {"function_id": sleeper})
    assert json.loads(failed["result"])["reason"] == "timeout", failed
    site.take("v1/execution-failed-response.json", failed)
    site.ask("PUT", f"/v1/functions/{sleeper}", {"timeout": 60})
    wait = {"function_id": sleeper, "sync": False, "description": "nightly"}
    id = site.ask("POST", "/v1/executions", wait, "v1/execution-create-async")["id"]
    site.ask("POST", f"/v1/executions/{id}/cancel", sample="v1/execution-cancel")


def versions(site, hello):
    path = f"/v1/functions/{hello}/versions"
    site.ask("POST", path, {"description": "first"}, "v1/version-create")
    site.ask("GET", path, sample="v1/versions-list")
    site.ask("GET", path + "/1", sample="v1/version-show")
    site.ask("PUT", f"/v1/functions/{hello}", form={"package": package(HELLO.replace("Hello", "Good day"))})
    site.ask("POST", path, {"description": "second"})


def aliases(site, hello):
    new = {"name": "prod", "function_id": hello, "function_version": 1}
    site.ask("POST", "/v1/aliases", new, "v1/alias-create")
    site.ask("GET", "/v1/aliases", sample="v1/aliases-list")
    site.ask("GET", "/v1/aliases/prod", sample="v1/alias-show")
    site.ask("PUT", "/v1/aliases/prod", {"canary_version": 2, "canary_weight": 10}, "v1/alias-update")
    site.ask("POST", "/v1/aliases/prod/rollback", sample="v1/alias-rollback")
    site.ask("DELETE", "/v1/aliases/prod")


def jobs(site, hello):
    new = {"function_id": hello, "pattern": NIGHTLY, "function_input": '{"name": "night"}', "name": "nightly"}
    id = site.ask("POST", "/v1/jobs", new, "v1/job-create")["id"]
    site.ask("GET", "/v1/jobs", sample="v1/jobs-list")
    site.ask("GET", f"/v1/jobs/{id}", sample="v1/job-show")
    site.ask("PUT", f"/v1/jobs/{id}", {"status": "paused"}, "v1/job-update")
    site.ask("DELETE", f"/v1/jobs/{id}")


def webhooks(site, hello):
    row = site.ask("POST", "/v1/webhooks", {"function_id": hello, "mode": "sync"}, "v1/webhook-create")
    path = f"/v1/webhooks/{row['id']}"
    site.ask("GET", "/v1/webhooks", sample="v1/webhooks-list")
    site.ask("GET", path, sample="v1/webhook-show")
    invoke = f"/v1/webhooks/{row['id']}/invoke"
    site.ask("POST", invoke, {"name": "Taibai"}, "v1/webhook-invoke", who=None, status=200)
    site.ask("PUT", path, {"mode": "async", "description": "from the shop"}, "v1/webhook-update")
    answer = site.ask("POST", invoke, {"name": "Taibai"}, who=None, status=202)
    site.take("v1/webhook-invoke-async-response.json", answer)
    site.until("its execution has ended", f"/v1/executions/{answer['execution_id']}",
               lambda answer: answer["status"] != "running")
    site.ask("POST", path + "/rotate", sample="v1/webhook-rotate")
    site.ask("DELETE", path)


def quotas(site):
    # Nothing runs by now, so that the numbers are the same in every run.
    project = site.ask("GET", "/v1/quotas", sample="v1/quotas")["project_id"]
    site.ask("GET", f"/v1/quotas/{project}", sample="v1/project-quotas", who="admin")


def shown():
    """The samples that the pages of the reference show."""
    names = set()
    for directory, _, files in os.walk(REFERENCE):
        for file in files:
            if file.endswith((".rst", ".inc")):
                path = os.path.join(directory, file)
                with open(path, encoding="utf-8") as page:
                    for name in re.findall(r"^\.\. literalinclude:: (\S+)$", page.read(), re.MULTILINE):
                        names.add(os.path.relpath(os.path.join(directory, name), SAMPLES))
    return names


def stored():
    found = {}
    for directory, _, files in os.walk(SAMPLES):
        for file in files:
            path = os.path.join(directory, file)
            with open(path, encoding="utf-8") as sample:
                found[os.path.relpath(path, SAMPLES)] = sample.read()
    return found


def write(taken):
    for name in stored().keys() - taken.keys():
        os.remove(os.path.join(SAMPLES, name))
    for name, text in taken.items():
        path = os.path.join(SAMPLES, name)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text)


def compare(taken):
    """Prints how each sample did; how many did not do."""
    files, pages, failed = stored(), shown(), 0
    for name in sorted(taken.keys() | files.keys() | pages):
        if name not in taken:
            trouble = "no request of tests/docs/samples.py has it"
        elif name not in files:
            trouble = "the file is missing; write it: tox-like-scripts/docs --write-samples"
        elif taken[name] != files[name]:
            trouble = f"the service answers otherwise:\n{taken[name]}"
        elif name not in pages:
            trouble = "no page shows it"
        else:
            print(f"ok: sample {name}")
            continue
        failed += 1
        print(f"not ok: sample {name}: {trouble}")
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--openstack", required=True, help="the published client")
    parser.add_argument("--endpoint", required=True, help="the service's")
    parser.add_argument("--image", required=True, help="the image of the Python runtime")
    parser.add_argument("--echo-image", required=True, help="an image that prints its arguments")
    parser.add_argument("--write", action="store_true", help="write the samples anew")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        site = Site(arguments, directory)
        try:
            scenario(site)
        finally:
            clean(site)
    if arguments.write:
        write(site.taken)
    return 1 if compare(site.taken) else 0


if __name__ == "__main__":
    sys.exit(main())
