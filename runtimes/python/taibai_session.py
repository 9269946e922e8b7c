"""The OpenStack session of a function, `context['os_session']`.

A slot has one session for its whole life, and each execution brings a token of its own. The session
asks for the token whenever it sends a request, so one that a function has stored in a global works
in the next execution with that execution's token, keeping its connections and what it has learned
of the services. Nothing is asked of Keystone: token, catalog and expiry are given.

Nothing of keystoneauth1 is loaded here before a function asks for its session. What the parent has
loaded ahead is used; a function whose package brings a keystoneauth1 gets a session of that one.
"""

import json
import os
import threading

CLOUD_FILE = "cloud.json"
CA_FILE = "ca.crt"

# What libraries that know nothing of the session read to find certificates.
CA_VARIABLES = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")

NOT_GIVEN = (
    "there are no OpenStack credentials: a session can be used while an execution runs that was given some, "
    "and context['os_session'] is None in one that was not"
)


class Credentials:
    """What the execution under way was given, if anything."""

    def __init__(self, report):
        """`report` is called when a service refuses the token, once in an execution at most."""
        self.report = report
        self.process = os.getpid()
        self.lock = threading.Lock()
        self.given = None
        self.request_id = None
        self.used = self.refused = False
        self.access = None
        self.directory = None
        self.cloud = None
        self.session = None

    def begin(self, given, request_id):
        """Takes over the credentials of an execution and makes its `context`."""
        if given is None:
            self.given = None
            return {"os_session": None}
        if given["cloud"] != self.directory:
            self.enter(given["cloud"])
        self.access = None
        self.used = self.refused = False
        self.request_id = request_id
        self.given = given
        if self.session is not None:
            self.session.tidy()
        return Context(self.make_session)

    def end(self):
        """Forgets the token. Nothing is reported any more once this has returned."""
        with self.lock:
            self.given = self.access = None

    def enter(self, directory):
        earlier = self.directory and os.path.join(self.directory, CA_FILE)
        certificates = os.path.join(directory, CA_FILE)
        for name in CA_VARIABLES:
            if os.path.exists(certificates):
                os.environ[name] = certificates
            elif earlier and os.environ.get(name) == earlier:
                del os.environ[name]
        self.cloud = None
        self.directory = directory

    def get_cloud(self):
        if self.cloud is None:
            with open(os.path.join(self.directory, CLOUD_FILE), encoding="utf-8") as file:
                self.cloud = json.load(file)
        return self.cloud

    def get_verify(self):
        """Certificates are always checked: against those of the image and the cloud's own."""
        return os.path.join(self.directory, CA_FILE) if self.get_cloud().get("cacert") else True

    def make_session(self):
        if self.session is None:
            session = build(self)
            with self.lock:
                self.session = self.session or session
        return self.session

    def get_given(self):
        given = self.given
        if given is None:
            from keystoneauth1 import exceptions

            raise exceptions.AuthorizationFailure(NOT_GIVEN)
        return given

    def get_access(self):
        """The token with all that Keystone said about it."""
        given, access = self.get_given(), self.access
        if access is None or access.auth_token != given["token"]:
            from keystoneauth1.access.access import AccessInfoV3

            token = {key: given[key] for key in ("expires_at", "user", "project", "roles")}
            token["methods"] = ["token"]
            token["catalog"] = self.get_cloud()["catalog"]
            access = self.access = AccessInfoV3({"token": token}, given["token"])
        return access

    def refuse(self):
        """Notes that a service did not take a token. True where another try makes sense."""
        if os.getpid() != self.process:
            return False
        with self.lock:
            if self.given is None or self.refused:
                return False
            # A token that this execution has not handed out yet was kept by a client from an earlier
            # one, which asks for this execution's next.
            if self.used:
                self.refused = True
                self.report()
            return True


class Context(dict):
    """The `context` of a function, which makes the session when it is looked at.

    A function that does not use the session pays nothing for it, neither time nor memory.
    """

    def __init__(self, make_session):
        super().__init__(os_session=None)
        self.make_session = make_session

    def fill(self):
        make_session, self.make_session = self.make_session, None
        if make_session is not None:
            super().__setitem__("os_session", make_session())


def looked_at(name):
    plain = getattr(dict, name)

    def method(self, *arguments, **named):
        self.fill()
        return plain(self, *arguments, **named)

    method.__name__ = name
    return method


for name in (
    *("__getitem__", "__setitem__", "__delitem__", "__iter__", "__reversed__", "__eq__", "__ne__", "__repr__"),
    *("__or__", "__ror__", "__ior__"),
    *("clear", "copy", "get", "items", "pop", "popitem", "setdefault", "update", "values"),
):
    setattr(Context, name, looked_at(name))


def build(credentials):
    """A session of the keystoneauth1 that the function finds."""
    from keystoneauth1 import session
    from keystoneauth1.identity import base

    class Plugin(base.BaseIdentityPlugin):
        """Gives out the token of the execution under way."""

        def __init__(self):
            super().__init__(reauthenticate=False)

        @property
        def auth_url(self):
            return credentials.get_cloud()["auth_url"]

        @auth_url.setter
        def auth_url(self, url):
            pass

        @property
        def auth_ref(self):
            return None if credentials.given is None else credentials.get_access()

        @auth_ref.setter
        def auth_ref(self, access):
            pass

        def get_token(self, session):
            token = credentials.get_given()["token"]
            credentials.used = True
            return token

        def get_access(self, session, **more):
            return credentials.get_access()

        def get_auth_ref(self, session, **more):
            return credentials.get_access()

        def invalidate(self):
            return credentials.refuse()

        def get_endpoint_data(self, session, interface=None, region_name=None, **more):
            cloud = credentials.get_cloud()
            interface = interface or cloud.get("interface") or "public"
            near = cloud.get("region_name")
            if near and not region_name:
                found = super().get_endpoint_data(session, interface=interface, region_name=near, **more)
                if found is not None:
                    return found
            return super().get_endpoint_data(session, interface=interface, region_name=region_name, **more)

    class Session(session.Session):
        """A session that each execution finds as the first one did."""

        def tidy(self):
            self.auth = plugin
            self.verify = credentials.get_verify()
            self.cert = None
            request_id = credentials.request_id
            self.additional_headers = {"X-OpenStack-Request-ID": request_id} if request_id else {}

    plugin = Plugin()
    ready = Session(auth=plugin, app_name="taibai")
    ready.tidy()
    return ready
