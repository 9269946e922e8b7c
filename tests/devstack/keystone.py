#!/usr/bin/env python3
"""What the test of the DevStack plugin does in Keystone, beside what the plugin does.

    keystone.py CLOUD up REGION          a region of the test's own, in which Keystone and Swift are found too
    keystone.py CLOUD show REGION USER   what there is of the plugin's, as JSON
    keystone.py CLOUD down REGION USER [NAME]
                                         removes all of that, what Grenade left under a name, and the region
"""

import json
import os
import sys

from keystoneauth1 import loading
from keystoneclient.v3 import client
from openstack import config

# Under which type the services of the test are registered.
TYPES = os.environ.get("SERVICE_TYPES", "function-engine").split(",")
# What a plugin finds in a region beside its own.
OTHERS = ("identity", "object-store")


def connect(cloud):
    session = config.OpenStackConfig().get_one(cloud).get_session()
    return client.Client(session=session, endpoint_override=session.auth.get_access(session).service_catalog.url_for(
        service_type="identity", interface="public", region_name="RegionOne").rstrip("/"))


def up(keystone, region):
    keystone.regions.create(region)
    for kind in OTHERS:
        service = keystone.services.list(type=kind)[0]
        for endpoint in keystone.endpoints.list(service=service, region_id="RegionOne"):
            keystone.endpoints.create(service, endpoint.url, interface=endpoint.interface, region=region)


def found(keystone, region, user):
    """Of services, those that this region has endpoints of, or nobody."""
    elsewhere = {end.service_id for end in keystone.endpoints.list() if end.region_id != region}
    services = {service.id: service for kind in TYPES for service in keystone.services.list(type=kind)}
    endpoints = [endpoint for endpoint in keystone.endpoints.list(region_id=region) if endpoint.service_id in services]
    here = {endpoint.service_id for endpoint in endpoints}
    services = {id: service for id, service in services.items() if id in here or id not in elsewhere}
    users = [known for known in keystone.users.list() if known.name == user]
    return services, endpoints, users


def show(keystone, region, user):
    services, endpoints, users = found(keystone, region, user)
    roles = {role.id: role.name for role in keystone.roles.list()}
    print(json.dumps({
        "services": sorted([service.id, service.name, service.type] for service in services.values()),
        "endpoints": sorted([end.id, end.interface, end.url, end.enabled] for end in endpoints),
        "users": [[known.id, known.name] for known in users],
        "roles": sorted(
            [roles[given.role["id"]], given.scope["project"]["id"]]
            for known in users for given in keystone.role_assignments.list(user=known)
        ),
    }, indent=1, sort_keys=True))


def down(keystone, region, user, name=None):
    services, endpoints, _ = found(keystone, region, user)
    for endpoint in keystone.endpoints.list(region_id=region):
        keystone.endpoints.delete(endpoint)
    for service in {endpoint.service_id for endpoint in endpoints}:
        if not any(endpoint.service_id == service for endpoint in keystone.endpoints.list()):
            keystone.services.delete(services[service])
    for known in keystone.users.list():
        if known.name in (user, name):
            keystone.users.delete(known)
    for known in keystone.projects.list():
        if known.name == name:
            keystone.projects.delete(known)
    if any(known.id == region for known in keystone.regions.list()):
        keystone.regions.delete(region)


def main():
    cloud, action, *arguments = sys.argv[1:]
    {"up": up, "show": show, "down": down}[action](connect(cloud), *arguments)


if __name__ == "__main__":
    main()
