"""The commands for versions, aliases, jobs, webhooks and image functions, and the columns that they print."""

import datetime
import json
import os
import urllib.request

from cli import eventually
from commands import EXECUTION, FUNCTION, heads

JOB = ("id name count status function_alias function_id function_version function_input pattern "
       "first_execution_time next_execution_time project_id created_at updated_at").split()
WEBHOOK = ("id function_alias function_id function_version description project_id created_at updated_at "
           "webhook_url").split()
VERSION = "id function_id description version_number count project_id created_at updated_at".split()
ALIAS = "name function_id description function_version project_id created_at updated_at".split()


def everything(site):
    """Of a function that goes in the end, with all that refers to it."""
    source = "def main(name='World', **more):\n    print('Hello, %s' % name)\n    return name\n"
    with open(os.path.join(site.demo.directory, "greets.py"), "w", encoding="utf-8") as file:
        file.write(source)
    function = site.demo.json("function", "create", "--name", "greets", "--runtime", site.runtime,
                              "--file", "greets.py", "--entry", "greets.main")["id"]
    versions(site, function)
    aliases(site, function)
    jobs(site, function)
    webhooks(site, function)
    guarded(site, function)
    images(site)


def accepted(kind, *ids):
    return [f"Request to delete {kind} {id} has been accepted." for id in ids]


def versions(site, function):
    checks, admin, demo = site.checks, site.admin, site.demo
    created = demo.do("function", "version", "create", "greets", "--description", "the first")
    checks.equal("function version create takes a name, and prints the columns of a version",
                 set(created.columns()), set(VERSION))
    shown = demo.json("function", "version", "show", function, "1")
    checks.equal("function version show has what was created",
                 [shown[key] for key in ("function_id", "version_number", "description", "count", "project_id")],
                 [function, 1, "the first", 0, site.projects["demo"]])
    checks.equal("function version list prints its columns",
                 demo.do("function", "version", "list", function).columns(), heads(VERSION))
    again = demo.run("function", "version", "create", function)
    checks.that("a second version of the same code is refused, as the client prints it", again.status != 0 and
                "Function package not changed since the latest version 1. (HTTP 403)" in again.said, again.said)
    ran = demo.execute(function, "--function-version", "1", "--input", "Qinling")
    checks.equal("function execution create runs a version",
                 [ran["status"], ran["function_version"], ran["result"]["output"]], ["success", 1, "Qinling"])
    count = lambda: len(admin.json("function", "worker", "list", function))  # noqa: E731
    checks.equal("function worker list tells of version 0", count(), 0)
    detached = admin.do("function", "version", "detach", function, "1")
    checks.that("function version detach is accepted", "has been accepted" in detached.said, detached.said)
    missing = demo.run("function", "version", "show", function, "7")
    checks.that("a version that there is not is not found",
                missing.status != 0 and "FunctionVersion not found" in missing.said, missing.said)


def aliases(site, function):
    checks, demo, alt = site.checks, site.demo, site.alt
    created = demo.do("function", "alias", "create", "prod", "--function", "greets", "--function-version", "1",
                      "--description", "what users call")
    checks.equal("function alias create prints the columns of an alias", set(created.columns()), set(ALIAS))
    shown = demo.json("function", "alias", "show", "prod")
    checks.equal("function alias show has what was created",
                 [shown[key] for key in ("name", "function_id", "function_version", "description")],
                 ["prod", function, 1, "what users call"])
    checks.equal("function alias list prints its columns",
                 demo.do("function", "alias", "list").columns(), heads(ALIAS))
    ran = demo.json("function", "execution", "create", "--function-alias", "prod")
    checks.equal("function execution create runs an alias",
                 [ran["status"], ran["function_alias"], ran["function_id"], ran["function_version"]],
                 ["success", "prod", function, 1])
    changed = demo.json("function", "alias", "update", "prod", "--function-version", "0")
    checks.equal("function alias update takes the version as text",
                 [changed["function_version"], changed["description"]], [0, "what users call"])
    taken = demo.run("function", "alias", "create", "prod", "--function", function, "--function-version", "1")
    checks.that("a name that is taken is refused", taken.status != 0 and
                "Duplicate entry for function_aliases: ['project_id', 'name'] (HTTP 400)" in taken.said, taken.said)
    for what, *command in [("show", "show", "prod"), ("delete", "delete", "prod")]:
        answer = alt.run("function", "alias", *command)
        checks.that(f"another tenant cannot {what} an alias", answer.status != 0, answer.said)
    checks.equal("nor see one", alt.json("function", "alias", "list"), [])


def jobs(site, function):
    checks, demo, alt, admin = site.checks, site.demo, site.alt, site.admin
    # Half a day away, whenever this runs.
    nightly = f"{datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(hours=12):%-M %-H * * *}"
    created = demo.do("job", "create", "--function", "greets", "--name", "nightly", "--pattern", nightly,
                      "--function-input", '{"name": "night"}', "--count", "3")
    checks.equal("job create prints the columns of a job", set(created.columns()), set(JOB))
    listed = [row for row in demo.json("job", "list") if row["Name"] == "nightly"]
    checks.equal("job list has what was created",
                 [[row[key] for key in ("Function_id", "Pattern", "Count", "Status")] for row in listed],
                 [[function, nightly, 3, "running"]])
    job = listed[0]["Id"]
    checks.equal("job list prints its columns", demo.do("job", "list").columns(), heads(JOB))
    checks.equal("job show prints its columns", set(demo.do("job", "show", job).columns()), set(JOB))
    # In three days: no hour of no day of the week makes that the evening that it was.
    later = datetime.datetime.now(datetime.timezone.utc) + datetime.timedelta(days=3)
    pattern = f"0 21 * * {later:%a}".upper()
    paused = demo.json("job", "update", job, "--status", "paused", "--name", "weekly", "--pattern", pattern)
    checks.equal("job update changes what it names",
                 [paused["status"], paused["name"], paused["pattern"]], ["paused", "weekly", pattern])
    checks.equal("and the next time with the pattern", paused["next_execution_time"], f"{later:%Y-%m-%d}T21:00:00Z")
    refused = demo.run("job", "update", job, "--status", "done")
    checks.that("a status that nobody may set is refused",
                refused.status != 0 and "Invalid status. (HTTP 400)" in refused.said, refused.said)
    refused = demo.run("job", "create", "--function", function, "--pattern", "every day")
    checks.that("a pattern that is none is refused", refused.status != 0 and
                "The specified pattern is not valid: every day (HTTP 400)" in refused.said, refused.said)

    soon = demo.json("job", "create", "--function-alias", "prod", "--name", "now", "--pattern", "* * * * * *",
                     "--count", "1", "--function-input", "Taibai")
    checks.equal("a job by alias names no function", [soon["function_id"], soon["function_alias"]], [None, "prod"])
    eventually("the job is done", lambda: demo.json("job", "show", soon["id"])["status"] == "done")
    runs = ("function", "execution", "list", "--filter", f"description=has:{soon['id']}")
    eventually("its execution succeeds",
               lambda: [row["Status"] for row in demo.json(*runs)] == ["success"])
    rows = demo.json(*runs)
    checks.equal("it ran once, with its input and under its name",
                 [[row["Description"], row["Input"], json.loads(row["Result"])["output"]] for row in rows],
                 [[f"Created by Job {soon['id']}", "Taibai", "Taibai"]])
    checks.equal("function execution list prints the columns of an execution",
                 demo.do(*runs).columns(), heads(EXECUTION))
    checks.equal("another tenant sees no job", alt.json("job", "list"), [])
    answer = alt.run("job", "delete", job)
    checks.that("nor can it delete one", answer.status != 0 and
                "Unable to delete the specified job(s)." in answer.said, answer.said)
    shown = admin.json("job", "show", job)
    checks.equal("an administrator sees it", shown["project_id"], site.projects["demo"])
    kept = demo.run("function", "delete", function)
    checks.that("a job keeps its function", kept.status != 0 and
                "The function is still associated with running job(s). (HTTP 403)" in kept.said, kept.said)
    deleted = demo.do("job", "delete", job, soon["id"])
    checks.equal("job delete takes several", deleted.said.splitlines(), accepted("job", job, soon["id"]))


def webhooks(site, function):
    checks, demo, alt = site.checks, site.demo, site.alt
    created = demo.do("webhook", "create", "--function", "greets", "--description", "for alarms")
    checks.equal("webhook create prints the columns of a webhook", set(created.columns()), set(WEBHOOK))
    checks.equal("webhook list prints its columns", demo.do("webhook", "list").columns(), heads(WEBHOOK))
    webhook = demo.json("webhook", "list")[0]["Id"]
    shown = demo.json("webhook", "show", webhook)
    checks.equal("webhook show has what was created",
                 [shown[key] for key in ("function_id", "function_version", "description", "project_id")],
                 [function, 0, "for alarms", site.projects["demo"]])
    url = shown["webhook_url"]
    checks.that("its URL is that of the catalog's endpoint",
                url.startswith(site.endpoint) and url.endswith(f"/v1/webhooks/{webhook}/invoke"), url)
    call = urllib.request.Request(url, data=b"name=webhook", method="POST")
    with urllib.request.urlopen(call, timeout=60) as answer:
        status, body = answer.status, json.load(answer)
    checks.equal("whoever knows the URL calls it", [status, list(body)], [202, ["execution_id"]])
    ran = lambda: demo.json("function", "execution", "show", body["execution_id"])  # noqa: E731
    eventually("what it called ends", lambda: ran()["status"] == "success")
    checks.equal("and the function gets the form",
                 [ran()["description"], json.loads(ran()["result"])["output"]],
                 [f"Created by Webhook {webhook}", "webhook"])
    changed = demo.json("webhook", "update", webhook, "--function-version", "1", "--description", "for others")
    checks.equal("webhook update changes what it names",
                 [changed["function_version"], changed["description"]], [1, "for others"])
    by_alias = demo.json("webhook", "create", "--function-alias", "prod")
    checks.equal("a webhook of an alias names no function",
                 [by_alias["function_id"], by_alias["function_version"], by_alias["function_alias"]],
                 [None, None, "prod"])
    checks.equal("another tenant sees no webhook", alt.json("webhook", "list"), [])
    kept = demo.run("function", "version", "delete", function, "1")
    checks.that("a webhook keeps its version", kept.status != 0 and
                "The function version is still associated with webhook. (HTTP 403)" in kept.said, kept.said)
    kept = demo.run("function", "alias", "delete", "prod")
    checks.that("and its alias", kept.status != 0 and "webhook(s)" in kept.said, kept.said)
    deleted = demo.do("webhook", "delete", webhook, by_alias["id"])
    checks.equal("webhook delete takes several", deleted.said.splitlines(), accepted("webhook", webhook, by_alias["id"]))


def guarded(site, function):
    checks, demo = site.checks, site.demo
    kept = demo.run("function", "delete", function)
    checks.that("an alias keeps its function", kept.status != 0 and
                "The function is still associated with function alias(es). (HTTP 403)" in kept.said, kept.said)
    deleted = demo.do("function", "alias", "delete", "prod")
    checks.equal("function alias delete says what it did", deleted.said.splitlines(),
                 ["Request to delete function_alias prod has been accepted."])
    checks.equal("function version delete prints nothing",
                 demo.do("function", "version", "delete", function, "1").said, "")
    checks.equal("and the version is gone", demo.json("function", "version", "list", function), [])
    demo.do("function", "delete", "greets")


def images(site):
    checks, demo = site.checks, site.demo
    created = demo.do("function", "create", "--name", "container", "--image", site.echo_image)
    checks.equal("function create --image prints the columns of a function", set(created.columns()), set(FUNCTION))
    shown = demo.json("function", "show", "container")
    code = shown["code"] if isinstance(shown["code"], dict) else json.loads(shown["code"].replace("'", '"'))
    checks.equal("function show has the image",
                 [code, shown["entry"], shown["runtime_id"]],
                 [{"source": "image", "image": site.echo_image}, None, None])
    ran = demo.execute("container", "--input", "Hello Taibai")
    checks.equal("an image runs", [ran["status"], list(ran["result"])], ["success", ["duration"]])
    log = demo.do("function", "execution", "log", "show", ran["id"])
    checks.equal("and its output is the log", log.out.strip(), "Hello Taibai")
    refused = demo.run("function", "download", shown["id"])
    checks.that("it cannot be downloaded", "Download image function is not allowed." in refused.said, refused.said)
    refused = demo.run("function", "version", "create", "container")
    checks.that("nor have a version", refused.status != 0 and
                "Function versioning only allowed for package type function. (HTTP 403)" in refused.said, refused.said)
    demo.do("function", "delete", "container")
