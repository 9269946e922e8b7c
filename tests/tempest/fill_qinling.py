"""Fills a database with Qinling's own schema and models, and a directory with packages as Qinling names
them. Prints the ids as JSON.

tox-like-scripts/tempest runs this with the Python that has the `qinling` package.
"""

import argparse
import datetime
import hashlib
import io
import json
import os
import sys
import types
import uuid
import zipfile

import sqlalchemy
from alembic import command
from alembic import config as alembic_config
from qinling.db.sqlalchemy import migration, model_base, models
from sqlalchemy import orm

PROJECT = "demo-project"


def package(text):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("main.py", f"def main(name='World', **kwargs):\n    return '{text}, ' + name\n")
    return content.getvalue()


def store(directory, name, content):
    """A package under its name and checksum; the checksum."""
    md5 = hashlib.md5(content).hexdigest()
    place = os.path.join(directory, PROJECT)
    os.makedirs(place, exist_ok=True)
    with open(os.path.join(place, f"{name}_{md5}.zip"), "wb") as file:
        file.write(content)
    return md5


def make_schema(url, engine):
    if engine.dialect.name == "sqlite":
        # Qinling's migrations change columns, which SQLite cannot; the models make the same tables.
        model_base.QinlingSecureModelBase.metadata.create_all(engine)
        return
    here = os.path.dirname(migration.__file__)
    config = alembic_config.Config(os.path.join(here, "alembic.ini"))
    config.set_main_option("script_location", os.path.join(here, "alembic_migrations"))
    config.qinling_config = types.SimpleNamespace(database=types.SimpleNamespace(connection=url))
    command.upgrade(config, "head")


def fill(session, directory, image):
    def add(model, **fields):
        row = model(id=str(uuid.uuid4()), project_id=fields.pop("project_id", PROJECT), **fields)
        session.add(row)
        session.flush()
        return row.id

    runtime = add(models.Runtime, name="python3", image=image, status="available", project_id="admin-project")
    hello = str(uuid.uuid4())
    code = {"source": "package", "md5sum": store(directory, hello, package("Hello"))}
    session.add(models.Function(
        id=hello, project_id=PROJECT, name="hello", runtime_id=runtime, cpu=100, memory_size=33554432, timeout=5,
        code=code, entry="main.main", count=3, trust_id="f" * 32, latest_version=10))
    session.flush()
    for number, text in [(1, "Good day"), (10, "Good evening")]:
        store(directory, f"{hello}_{number}", package(text))
        add(models.FunctionVersion, function_id=hello, version_number=number, count=number)
    lost = add(models.Function, name="lost", runtime_id=runtime, cpu=100, memory_size=33554432, timeout=5,
               code={"source": "package", "md5sum": "0" * 32}, entry="main.main", count=0, latest_version=0)
    add(models.FunctionAlias, name="prod", function_id=hello, function_version=1)
    soon = datetime.datetime.now(datetime.timezone.utc).replace(tzinfo=None) + datetime.timedelta(days=1)
    job = add(models.Job, name="daily", pattern="0 21 * * *", status="paused", first_execution_time=soon,
              next_execution_time=soon, function_id=hello, function_version=0, function_input='{"name": "job"}')
    webhook = add(models.Webhook, function_id=hello, function_version=10)
    by_alias = add(models.Webhook, function_alias="prod")
    add(models.Execution, function_id=hello, function_version=0, status="success", sync=True, logs="")
    session.commit()
    return {"runtime": runtime, "hello": hello, "lost": lost, "job": job, "webhook": webhook, "by_alias": by_alias}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="an empty database, as Qinling's [database] connection")
    parser.add_argument("packages", help="the directory of packages")
    parser.add_argument("image", help="the image of the runtime")
    arguments = parser.parse_args()
    engine = sqlalchemy.create_engine(arguments.url)
    make_schema(arguments.url, engine)
    with orm.Session(engine) as session:
        print(json.dumps(fill(session, arguments.packages, arguments.image)))


if __name__ == "__main__":
    sys.exit(main())
