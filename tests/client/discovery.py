"""Versions and what goes along with requests, as keystoneauth and openstacksdk see them.

tox-like-scripts/client runs this with the client's own Python, in a cloud whose catalog has the service.
"""

import argparse
import sys

from keystoneauth1 import adapter, discover, exceptions
from keystoneauth1 import session as keystone
from openstack import config, connection, service_description

from cli import Checks

SERVICE = "function-engine"


def discovery(checks, login, region):
    endpoint = login.get_endpoint(service_type=SERVICE, interface="public", region_name=region)
    found = discover.Discover(login, endpoint).version_data()
    checks.equal("one version is discovered", [(data["version"], data["raw_status"]) for data in found],
                 [((1, 0), "CURRENT")])
    checks.equal("with its microversions", [(data["min_microversion"], data["max_microversion"]) for data in found],
                 [((1, 0), (1, 1))])
    functions = adapter.Adapter(login, service_type=SERVICE, interface="public", region_name=region, min_version="1")
    data = functions.get_endpoint_data()
    checks.equal("an adapter finds its URL by the version", data.url.rstrip("/"), endpoint.rstrip("/") + "/v1")
    checks.equal("and its microversions", (data.min_microversion, data.max_microversion), ((1, 0), (1, 1)))


def microversions(checks, login, region):
    functions = adapter.Adapter(login, service_type=SERVICE, interface="public", region_name=region)
    for asked, given in ((None, "1.0"), ("1.0", "1.0"), ("1.1", "1.1"), ("latest", "1.1")):
        answer = functions.get("/v1/functions", microversion=asked)
        checks.equal(f"microversion {asked} is answered in {given}", answer.headers["OpenStack-API-Version"],
                     f"{SERVICE} {given}")
    try:
        functions.get("/v1/functions", microversion="1.9")
        refused = None
    except exceptions.NotAcceptable as error:
        refused = error.response.json()["errors"][0]
    checks.equal("an unknown one is refused, and the known ones are named",
                 refused and (refused["min_version"], refused["max_version"], refused["status"]), ("1.0", "1.1", 406))
    try:
        functions.get("/v1/functions/missing")
        said = None
    except exceptions.NotFound as error:
        said = (error.message.split(" (")[0], error.details)
    checks.equal("keystoneauth reads what is wrong", said, ("Not Found", "Function not found [id=missing]"))


def sdk(checks, region):
    cloud = connection.Connection(config=region)
    cloud.add_service(service_description.ServiceDescription(SERVICE))
    # It finds the version by itself, so that paths are within it.
    functions = cloud.function_engine
    checks.equal("openstacksdk calls it by its type", functions.get("/functions").status_code, 200)
    answer = functions.get("/functions", microversion="1.1")
    checks.equal("and in a microversion", answer.headers["OpenStack-API-Version"], f"{SERVICE} 1.1")
    cloud.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--region", help="where the service is, if not where clouds.yaml says")
    checks = Checks()
    region = config.OpenStackConfig().get_one(cloud="demo")
    region.config["region_name"] = parser.parse_args().region or region.config["region_name"]
    login = keystone.Session(auth=region.get_auth())
    discovery(checks, login, region.config["region_name"])
    microversions(checks, login, region.config["region_name"])
    sdk(checks, region)
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
