"""Versions and what goes along with requests, as keystoneauth and openstacksdk see them.

tox-like-scripts/client runs this with the client's own Python, in a cloud whose catalog has the service.
"""

import sys

from keystoneauth1 import adapter, discover, exceptions
from keystoneauth1 import session as keystone
from openstack import config, connection

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
        text = None
    except exceptions.NotFound as error:
        text = (error.message, error.request_id == error.response.json()["errors"][0]["request_id"])
    checks.that("keystoneauth reads what is wrong, and the id of the request",
                text is not None and "Function not found [id=missing]" in text[0] and text[1], text)


def sdk(checks, region):
    cloud = connection.Connection(config=region)
    client = region.get_session_client(SERVICE)
    checks.equal("openstacksdk calls it by its type", client.get("/v1/functions").status_code, 200)
    client = region.get_session_client(SERVICE, version="1")
    checks.equal("and by its version", client.get("/functions", microversion="1.1").status_code, 200)
    cloud.close()


def main():
    checks = Checks()
    region = config.OpenStackConfig().get_one(cloud="demo")
    login = keystone.Session(auth=region.get_auth())
    discovery(checks, login, region.region_name)
    microversions(checks, login, region.region_name)
    sdk(checks, region)
    return 1 if checks.failed else 0


if __name__ == "__main__":
    sys.exit(main())
