"""What a user of the published client sees, against a service in the catalog of a cloud.

tox-like-scripts/client starts the service and runs this.
"""

import argparse
import os
import sys
import tempfile

import commands
import cookbook
import resources
import tenants
from cli import Checks, User, eventually


class Site:
    """The service, its users, and names of our own in a cloud that others may use."""

    def __init__(self, arguments, directory):
        self.checks = Checks()
        self.echo_image, self.endpoint = arguments.echo_image, arguments.endpoint
        self.image, self.package = arguments.image, os.path.abspath(arguments.package)
        self.root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        self.admin, self.demo, self.alt = (
            User(arguments.openstack, cloud, directory) for cloud in ("admin", "demo", "alt_demo")
        )
        self.projects = {
            user.cloud: user.json("token", "issue")["project_id"] for user in (self.admin, self.demo, self.alt)
        }
        self.service_user = arguments.service_user
        self.container = f"cookbook-{os.getpid()}"
        # Of demo: the function that other tenants try to reach.
        self.kept = "hello_world"
        self.runtime = "python3"
        self.runtime_id = self.private_runtime = None


def trusts(site):
    """The trusts that demo has given to this service."""
    return [row for row in site.admin.json("trust", "list")
            if row["Trustee User ID"] == site.service_user and row["Project ID"] == site.projects["demo"]]


def delete_objects(site):
    for suffix in ("", "_thumb"):
        site.demo.run("container", "delete", "--recursive", site.container + suffix)


def checked(site):
    commands.runtimes(site)
    commands.functions(site)
    function, execution = cookbook.hello_world(site)
    tenants.operators_only(site, function)
    tenants.between(site, function, execution)
    resources.everything(site)
    cookbook.test_sleep(site)
    cookbook.resize_image(site)
    commands.delete_runtime(site)
    site.checks.equal("a function has one trust", len(trusts(site)), 1)
    site.demo.do("function", "delete", function)
    eventually("the trusts of deleted functions end", lambda: not trusts(site))
    site.checks.that("and none is left when it is deleted", True)


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--openstack", required=True, help="the program")
    parser.add_argument("--image", required=True, help="the image of the Python runtime")
    parser.add_argument("--echo-image", required=True, help="an image that prints its arguments")
    parser.add_argument("--endpoint", required=True, help="the service's, as the catalog has it")
    parser.add_argument("--package", required=True, help="the package of examples/resize_image, with Pillow")
    parser.add_argument("--service-user", required=True, help="id of the service's user")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        site = Site(arguments, directory)
        try:
            checked(site)
        except AssertionError as error:
            site.checks.that("every command could be tried", False, error)
        finally:
            delete_objects(site)
    return 1 if site.checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
