"""What schemathesis cannot guess: resources that exist, a package, and an image that nobody has to pull.

The description says what a value looks like. With made-up ids every answer would be 404, so that a part of
the calls gets ids of what tox-like-scripts/fuzz-api has made; the rest goes as it was generated.
"""

import io
import os
import random
import zipfile

import schemathesis

KNOWN = {name: os.environ[f"FUZZ_{name.upper()}"] for name in ("runtime", "function", "image")}
# Not hypothesis' own choices: the same in each run all the same.
CHOICE = random.Random(7)


def package():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("main.py", "def main(**kwargs):\n    return kwargs\n")
    return content.getvalue()


PACKAGE = package()


def often():
    return CHOICE.random() < 0.7


@schemathesis.hook
def map_path_parameters(context, parameters):
    path = context.operation.path
    if not parameters or context.operation.method.upper() == "DELETE" or not often():
        return parameters
    if path.startswith("/v1/functions/{id}"):
        return {**parameters, "id": KNOWN["function"]}
    if path.startswith("/v1/runtimes/{id}"):
        return {**parameters, "id": KNOWN["runtime"]}
    return parameters


@schemathesis.hook
def map_query(context, query):
    # A marker is the id of something in the list: made up, it has the whole call refused.
    if query and "marker" in query and often():
        return {name: value for name, value in query.items() if name != "marker"}
    return query


@schemathesis.hook
def map_body(context, body):
    if not isinstance(body, dict):
        return body
    path, method = context.operation.path, context.operation.method.upper()
    if path.startswith("/v1/runtimes") and "image" in body:
        # A name made of anything would have the service ask registries of the whole world.
        return {**body, "image": KNOWN["image"]} if isinstance(body["image"], str) else body
    if path in ("/v1/executions", "/v1/jobs", "/v1/webhooks", "/v1/aliases") and method == "POST" and often():
        body = {**body, "function_id": KNOWN["function"]}
        if often():
            body.pop("function_alias", None)
            body.pop("function_version", None)
    if path == "/v1/functions" and method == "POST" and often():
        body = {**body, "runtime_id": KNOWN["runtime"], "code": '{"source": "package"}'}
    if path.startswith("/v1/functions") and method in ("POST", "PUT") and "package" in body and often():
        body = {**body, "package": PACKAGE}
    return body
