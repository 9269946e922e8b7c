"""The commands for runtimes, functions and executions, and the columns that they print."""

import json
import os
import zipfile

from cli import eventually

RUNTIME = "id name image status description is_public trusted project_id created_at updated_at".split()
FUNCTION = ("id name description count code runtime_id entry project_id created_at updated_at "
            "cpu memory_size timeout").split()
EXECUTION = ("id function_alias function_id function_version description input result status sync "
             "project_id created_at updated_at").split()
WORKER = "function_id worker_name".split()
POOL = "name capacity".split()


def heads(columns):
    return [column.capitalize() for column in columns]


def runtimes(site):
    """The operator's commands; the runtime python3 stays for the rest."""
    checks, admin, demo = site.checks, site.admin, site.demo
    created = admin.do("runtime", "create", site.image, "--name", site.runtime)
    # A single thing is shown in the order of its fields' names.
    checks.equal("runtime create prints the columns of a runtime", set(created.columns()), set(RUNTIME))
    listed = [row for row in admin.json("runtime", "list") if row["Name"] == site.runtime]
    checks.equal("runtime list has what was created", [row["Image"] for row in listed], [site.image])
    runtime = listed[0]["Id"]
    eventually("the runtime is available",
               lambda: admin.json("runtime", "show", runtime)["status"] == "available")
    shown = admin.json("runtime", "show", runtime)
    checks.equal("runtime show has the runtime",
                 [shown[key] for key in ("id", "name", "status", "is_public", "trusted", "project_id")],
                 [runtime, site.runtime, "available", True, True, site.projects["admin"]])
    checks.equal("runtime show prints its columns",
                 set(demo.do("runtime", "show", runtime).columns()), set(RUNTIME))
    checks.equal("runtime list prints its columns", demo.do("runtime", "list").columns(), heads(RUNTIME))

    pool = admin.do("runtime", "pool", "show", runtime)
    checks.equal("runtime pool show prints its columns", set(pool.columns()), set(POOL))
    capacity = admin.json("runtime", "pool", "show", runtime)
    checks.that("and the capacity", capacity["name"] == runtime and "available" in str(capacity["capacity"]),
                capacity)

    other = admin.json("runtime", "create", site.image, "--name", site.runtime + "-2", "--private",
                       "--untrusted", "--description", "for ourselves")
    checks.equal("runtime create takes --private, --untrusted and --description",
                 [other[key] for key in ("is_public", "trusted", "description")],
                 [False, False, "for ourselves"])
    site.private_runtime = other["id"]
    site.runtime_id = runtime


def delete_runtime(site):
    deleted = site.admin.do("runtime", "delete", site.private_runtime)
    site.checks.equal("runtime delete says what it did", deleted.said,
                      f"Request to delete runtime {site.private_runtime} has been accepted.")


def functions(site):
    checks, admin, demo = site.checks, site.admin, site.demo
    with open(os.path.join(demo.directory, "words.py"), "w", encoding="utf-8") as file:
        file.write("def main(*words, **named):\n    print('called')\n    return [words, named.get('who')]\n")
    created = demo.do("function", "create", "--name", "words", "--runtime", site.runtime,
                      "--file", "words.py", "--entry", "words.main")
    checks.equal("function create prints the columns of a function", set(created.columns()), set(FUNCTION))
    shown = demo.json("function", "show", "words")
    checks.equal("function show finds it by its name",
                 [shown[key] for key in ("name", "runtime_id", "entry", "cpu", "memory_size", "timeout", "project_id")],
                 ["words", site.runtime_id, "words.main", 100, 33554432, 5, site.projects["demo"]])
    function = shown["id"]
    checks.equal("function show prints its columns",
                 set(demo.do("function", "show", function).columns()), set(FUNCTION))
    checks.equal("function list prints its columns", demo.do("function", "list").columns(), heads(FUNCTION))
    own = f"project_id={site.projects['demo']}"
    checks.equal("function list takes a filter",
                 [row["Id"] for row in demo.json("function", "list", "--filter", own)], [function])
    refused = demo.run("function", "list", "--filter", "name=words")
    checks.that("and names one that it does not know",
                refused.status != 0 and 'Unknown argument: "name" (HTTP 400)' in refused.said, refused.said)
    changed = demo.json("function", "update", "words", "--name", "words2", "--description", "says them",
                        "--cpu", "200", "--memory-size", "67108864", "--timeout", "30")
    checks.equal("function update changes what it names",
                 [changed[key] for key in ("name", "description", "cpu", "memory_size", "timeout")],
                 ["words2", "says them", 200, 67108864, 30])
    missing = demo.run("function", "show", "words")
    checks.that("a name that is gone is not found",
                missing.status != 0 and "No Function matching {'name': 'words'}. (HTTP 404)" in missing.said,
                missing.said)

    executions(site, function)

    workers = admin.do("function", "worker", "list", function)
    checks.equal("function worker list prints its columns", workers.columns(), heads(WORKER))
    workers = [row["Worker_name"] for row in admin.json("function", "worker", "list", function)]
    checks.equal("the function that ran has a worker", len(workers), 1)
    scaled = admin.do("function", "scaleup", function, "--count", "1")
    checks.that("function scaleup is accepted", "has been accepted" in scaled.said, scaled.said)
    count = lambda: len(admin.json("function", "worker", "list", function))  # noqa: E731
    eventually("there are two workers", lambda: count() == 2)
    checks.that("and gives it another worker", True)
    scaled = admin.do("function", "scaledown", function, "--count", "1")
    checks.that("function scaledown is accepted", "has been accepted" in scaled.said, scaled.said)
    eventually("there is one worker", lambda: count() == 1)
    checks.that("and takes it away again", True)
    detached = admin.do("function", "detach", function)
    checks.that("function detach is accepted", "has been accepted" in detached.said, detached.said)
    eventually("there is no worker", lambda: count() == 0)
    checks.that("and leaves none", True)

    download(site, function)
    several = [demo.json("function", "create", "--name", f"many{number}", "--runtime", site.runtime_id,
                         "--file", "words.py")["id"] for number in (1, 2)]
    deleted = demo.do("function", "delete", function, "many1", several[1])
    checks.equal("function delete takes several, by id and by name", deleted.said.splitlines(), [
        f"Request to delete function {name} has been accepted." for name in (function, several[0], several[1])
    ])
    again = demo.run("function", "delete", function)
    checks.that("what is gone cannot be deleted", again.status != 0 and
                "Unable to delete the specified function(s)." in again.said, again.said)


def download(site, function):
    checks, demo = site.checks, site.demo
    demo.do("function", "download", function, "-o", "downloaded.zip")
    with zipfile.ZipFile(os.path.join(demo.directory, "downloaded.zip")) as package:
        checks.equal("function download brings the package", package.namelist(), ["words.py"])
    demo.do("function", "download", "words2")
    checks.that("under the function's id where no name is given",
                zipfile.is_zipfile(os.path.join(demo.directory, f"{function}.zip")))
    with zipfile.ZipFile(os.path.join(demo.directory, "second.zip"), "w") as package:
        package.writestr("words.py", "def main(**named):\n    return 'the second'\n")
    demo.do("function", "update", function, "--package", "second.zip")
    checks.equal("function update with a package replaces the code",
                 demo.execute(function)["result"]["output"], "the second")


def executions(site, function):
    checks, demo = site.checks, site.demo
    created = demo.do("function", "execution", "create", "--function", function)
    checks.equal("function execution create prints the columns of an execution",
                 set(created.columns()), set(EXECUTION))
    named = demo.execute("words2", "--input", '{"who": "demo"}')
    checks.equal("keys of the input are arguments",
                 [named["status"], named["sync"], named["result"]["output"]], ["success", True, [[], "demo"]])
    text = demo.execute("words2", "--input", "one")
    checks.equal("text is the first argument", text["result"]["output"], [["one"], None])
    execution = named["id"]
    shown = demo.json("function", "execution", "show", execution)
    checks.equal("function execution show has what was created",
                 [shown[key] for key in ("id", "function_id", "status", "project_id", "function_version")],
                 [execution, function, "success", site.projects["demo"], 0])
    checks.equal("and the input, as it was sent", json.loads(shown["input"]), {"who": "demo"})
    checks.equal("function execution show prints its columns",
                 set(demo.do("function", "execution", "show", execution).columns()), set(EXECUTION))
    checks.equal("function execution list prints its columns",
                 demo.do("function", "execution", "list").columns(), heads(EXECUTION))
    log = demo.do("function", "execution", "log", "show", execution)
    checks.that("function execution log show has what was printed", "called\n" in log.out, log.said)

    later = demo.json("function", "execution", "create", "--function", function, "--async")
    checks.equal("with --async the answer does not wait", [later["status"], later["sync"]], ["running", False])
    eventually("the asynchronous execution ends", lambda:
               demo.json("function", "execution", "show", later["id"])["status"] == "success")
    checks.that("and it ends", True)

    of_function = ("function", "execution", "list", "--filter", f"function_id={function}")
    ids = {row["Id"] for row in demo.json(*of_function, "--filter", "status=success")}
    checks.that("function execution list takes filters", {execution, later["id"]} <= ids and len(ids) == 4, ids)
    deleted = demo.do("function", "execution", "delete", "--execution", execution, later["id"])
    checks.equal("function execution delete takes several", deleted.said.splitlines(), [
        f"Request to delete execution {id} has been accepted." for id in (execution, later["id"])
    ])
    demo.do("function", "execution", "delete", "--function", function)
    checks.equal("and all of a function", demo.json(*of_function), [])
