"""Two tenants who cannot see, run or read anything of each other, and what only an operator may do."""


def between(site, function, execution):
    """`function` and `execution` are demo's; alt_demo tries what it can."""
    checks, alt, admin = site.checks, site.alt, site.admin
    refused = [
        ("show a function", "function", "show", function),
        ("show a function by its name", "function", "show", site.kept),
        ("change a function", "function", "update", function, "--timeout", "9"),
        ("change a function's code", "function", "update", function, "--package", "second.zip"),
        ("delete a function", "function", "delete", function),
        ("download a function", "function", "download", function, "-o", "stolen.zip"),
        ("run a function", "function", "execution", "create", "--function", function),
        ("show an execution", "function", "execution", "show", execution),
        ("read a log", "function", "execution", "log", "show", execution),
        ("delete an execution", "function", "execution", "delete", "--execution", execution),
    ]
    for what, *command in refused:
        answer = alt.run(*command)
        # Where there is nothing, and where there is another's, the answer is one.
        gone = "HTTP 404" in answer.said or "could not be found" in answer.said or "not found" in answer.said.lower()
        checks.that(f"another tenant cannot {what}", answer.status != 0 and gone, answer.said)
    checks.equal("it sees no function", alt.json("function", "list"), [])
    checks.equal("and no execution", alt.json("function", "execution", "list"), [])
    runtimes = [row["Id"] for row in alt.json("runtime", "list")]
    checks.that("it sees public runtimes and no others' private ones",
                site.runtime_id in runtimes and site.private_runtime not in runtimes, runtimes)
    answer = alt.run("runtime", "show", site.private_runtime)
    checks.that("nor can it show one", answer.status != 0 and "HTTP 404" in answer.said, answer.said)
    answer = alt.run("function", "create", "--name", "stolen", "--runtime", site.runtime,
                     "--container", site.container, "--object", "hello_world.zip")
    checks.that("another's objects are no code", answer.status != 0 and "HTTP 400" in answer.said, answer.said)

    mine = alt.json("function", "create", "--name", site.kept, "--runtime", site.runtime,
                    "--file", "words.py", "--entry", "words.main")
    checks.equal("a name that another tenant uses is free",
                 alt.execute(site.kept)["project_id"], site.projects["alt_demo"])
    alt.do("function", "delete", mine["id"])
    for what, *command in [
        ("function list", "function", "list", "--filter", "all_projects=true"),
        ("function execution list", "function", "execution", "list", "--filter", "all_projects=true"),
    ]:
        answer = alt.run(*command)
        checks.that(f"{what} of all projects is the operator's",
                    answer.status != 0 and "HTTP 403" in answer.said, answer.said)
        rows = admin.json(*command)
        checks.that("who sees those of all", site.projects["demo"] in [row["Project_id"] for row in rows], rows)
    shown = site.demo.json("function", "show", function)
    checks.equal("nothing of it is changed", [shown["id"], shown["timeout"]], [function, 5])


def operators_only(site, function):
    for what, *command in [
        ("runtime create", "runtime", "create", site.image),
        ("runtime delete", "runtime", "delete", site.runtime_id),
        ("runtime pool show", "runtime", "pool", "show", site.runtime_id),
        ("function worker list", "function", "worker", "list", function),
        ("function scaleup", "function", "scaleup", function),
        ("function scaledown", "function", "scaledown", function),
        ("function detach", "function", "detach", function),
    ]:
        answer = site.demo.run(*command)
        site.checks.that(f"{what} is the operator's alone",
                         answer.status != 0 and "Operation not allowed" in answer.said, answer.said)
