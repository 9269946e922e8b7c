#!/usr/bin/env python3
"""Print a token that ended five minutes ago, signed with the cloud's own keys.

Runs in the cloud's virtual environment.

usage: expired_token.py KEYSTONE_CONF USER_ID PROJECT_ID
"""

import datetime
import sys

from oslo_config import cfg

import keystone.conf
from keystone.token import token_formatters


def main():
    conf, user, project = sys.argv[1:]
    keystone.conf.configure()
    cfg.CONF(["--config-file", conf], project="keystone")
    end = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=5)
    print(
        token_formatters.TokenFormatter().create_token(
            user_id=user,
            project_id=project,
            expires_at=end.strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            audit_ids=["cXwkDgGLQKiVhDlPeuwkyA"],
            payload_class=token_formatters.ProjectScopedPayload,
            methods=["password"],
        )
    )


if __name__ == "__main__":
    main()
