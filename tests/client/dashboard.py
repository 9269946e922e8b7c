"""Qinling's dashboard, in its own calls: the published client as a library, with a token and an endpoint from
the catalog.

tox-like-scripts/client runs this with the client's own Python.
"""

import argparse
import hashlib
import io
import json
import os
import sys
import uuid
import zipfile

from keystoneauth1 import session as keystone
from openstack import config
from qinlingclient import client as qinling
from qinlingclient.common import exceptions

from cli import Checks, eventually

GREET = "def main(name='World', **kwargs):\n    print('greeting', name)\n    return 'Hello, ' + name\n"
SECOND = GREET.replace("Hello", "Good day")


def package(text):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("main.py", text)
    return content.getvalue()


def panels(cloud):
    """The dashboard's client for an account: token mode, and the endpoint as the catalog has it."""
    region = config.OpenStackConfig().get_one(cloud=cloud)
    login = keystone.Session(auth=region.get_auth())
    endpoint = login.get_endpoint(service_type="function-engine", interface="public", region_name=region.region_name)
    return qinling.Client("1", endpoint, token=login.get_token(), insecure=False, cacert=None)


def refused(call, *arguments, **named):
    """What a call that must not succeed says."""
    try:
        call(*arguments, **named)
    except exceptions.HTTPException as error:
        return str(error)
    return "it succeeded"


def runtimes(checks, operator, image):
    row = operator.runtimes.create(image=image, name="dashboard", description="of a panel", trusted=False)
    shown = operator.runtimes.get(row.id)
    checks.equal("a runtime is created and opened", [shown.name, shown.description, shown.is_public, shown.trusted],
                 ["dashboard", "of a panel", True, False])
    eventually("the runtime is available", lambda: operator.runtimes.get(row.id).status == "available")
    return row.id


def functions(checks, user, runtime):
    listed = user.runtimes.list()
    checks.that("the form of a function offers the runtime",
                runtime in [row.id for row in listed if row.status == "available"], listed)
    checks.that("every row of the runtimes' table has its columns",
                all(hasattr(row, name) for row in listed for name in
                    ("id", "name", "image", "created_at", "updated_at", "project_id", "is_public", "status")), listed)

    content = package(GREET)
    row = user.functions.create(
        {"source": "package", "md5sum": hashlib.md5(content).hexdigest()}, runtime=runtime, package=content,
        name="panel", description="made in a form", entry="main.main", cpu=100, memory_size=33554432, timeout=10,
    )
    mine = next(function for function in user.functions.list() if function.id == row.id)
    checks.equal("in the table `code` is text that holds the source", json.loads(mine.code)["source"], "package")
    checks.that("and sizes are numbers", isinstance(mine.cpu, int) and isinstance(mine.memory_size, int), mine)
    shown = user.functions.get(row.id)
    checks.equal("the details have the checksum", shown.code["md5sum"], hashlib.md5(content).hexdigest())
    checks.equal("what is downloaded is what was uploaded",
                 b"".join(user.functions.get(row.id, download=True).iter_content(1024)), content)
    # An upload in several chunks, of which the dashboard sends the first.
    checks.that("a package that was cut off is refused with a reason", "md5" in refused(
        user.functions.create, {"source": "package", "md5sum": hashlib.md5(content).hexdigest()}, runtime=runtime,
        package=package("pass\n"), name="cut"), "")
    return row.id


def update(checks, user, function):
    # All fields of the form, those that were left empty too.
    row = user.functions.update(function, name="panel", description="", cpu=200, memory_size=67108864, entry="main.main")
    checks.equal("a form is stored with its empty field", [row.name, row.description, row.cpu, row.memory_size],
                 ["panel", "", 200, 67108864])
    content = package(SECOND)
    row = user.functions.update(
        function, code={"source": "package", "md5sum": hashlib.md5(content).hexdigest()}, package=content,
        name="panel", description="", cpu=100, memory_size=33554432, entry="main.main",
    )
    checks.equal("and one with a new file", row.code["md5sum"], hashlib.md5(content).hexdigest())


def executions(checks, user, function):
    # The panel gives function, version, whether to wait, and input by their places.
    row = user.function_executions.create(function, 0, True, '{"name": "panel"}')
    checks.equal("an execution with shifted arguments runs what was meant",
                 [row.function_version, row.function_alias, row.sync, row.status, json.loads(row.input)],
                 [0, None, True, "success", {"name": "panel"}])
    checks.equal("with its input", json.loads(row.result)["output"], "Good day, panel")
    row = user.function_executions.create(function, 0, False, None)
    checks.equal("and without one, in the background", [row.sync, row.input, row.result], [False, None, None])

    def ended():
        return user.function_executions.get(row.id).status == "success"

    eventually("the execution ends", ended)
    result = json.loads(user.function_executions.get(row.id).result)
    checks.that("its row, read again, has output and duration",
                result["output"] == "Good day, World" and result["duration"] >= 0, result)
    listed = [one for one in user.function_executions.list() if one.function_id == function]
    checks.that("the table has both", row.id in [one.id for one in listed] and len(listed) == 2, listed)
    checks.that("every result in it is an object", all(isinstance(json.loads(one.result), dict) for one in listed), listed)
    # The client's own call for it has nothing to say in token mode, so the panel takes the bytes.
    log = user.function_executions.http_client.request(f"/v1/executions/{row.id}/log", "GET").content
    checks.that("the log is shown", b"greeting World" in log, log)
    missing = str(uuid.uuid4())
    checks.that("a version that is not there is said in a sentence", "(HTTP 404)" in refused(
        user.function_executions.create, function, 7, True, None), "")
    checks.that("and a function that is not there", "(HTTP 404)" in refused(user.functions.get, missing), "")
    for one in listed:
        user.function_executions.delete(one.id)
    checks.equal("executions are deleted", [one for one in user.function_executions.list() if one.function_id == function], [])


def versions(checks, user, function):
    version = user.function_versions.create(function)
    checks.equal("a version is made", [version.version_number, version.description], [1, ""])
    shown = user.function_versions.get(function, 1)
    checks.that("and opened", all(hasattr(shown, name) for name in (
        "id", "function_id", "description", "version_number", "count", "project_id", "created_at", "updated_at")), shown)
    row = user.function_executions.create(function, 1, True, None)
    checks.equal("the panel runs it", [row.function_version, json.loads(row.result)["output"]], [1, "Good day, World"])
    user.function_executions.delete(row.id)
    # A version is deleted by its id alone, so all functions are asked for theirs.
    found = [(one.id, each.version_number) for one in user.functions.list() for each in user.function_versions.list(one.id)
             if each.id == version.id]
    checks.equal("it is found among all functions' versions", found, [(function, 1)])
    user.function_versions.delete(*found[0])
    checks.equal("and deleted", user.function_versions.list(function), [])


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", required=True, help="the image of the Python runtime")
    arguments = parser.parse_args()
    for name in [name for name in os.environ if name.startswith("OS_") and name != "OS_CLIENT_CONFIG_FILE"]:
        del os.environ[name]
    checks = Checks()
    operator, user = panels("admin"), panels("demo")
    runtime = function = None
    try:
        runtime = runtimes(checks, operator, arguments.image)
        function = functions(checks, user, runtime)
        update(checks, user, function)
        executions(checks, user, function)
        versions(checks, user, function)
    except (AssertionError, exceptions.HTTPException) as error:
        checks.that("every call could be made", False, error)
    finally:
        if function:
            user.functions.delete(function)
        if runtime:
            operator.runtimes.delete(runtime)
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
