#!/usr/bin/env python3
"""Writes oslo-cases.json: what oslo.policy itself says of many rules, callers and targets.

    python3 -m venv /tmp/oslo && /tmp/oslo/bin/pip install oslo.policy==6.0.1
    /tmp/oslo/bin/python tests/policy/generate.py > tests/policy/oslo-cases.json
"""

import importlib.metadata
import json
import logging

from oslo_config import cfg
from oslo_policy import policy

logging.disable(logging.CRITICAL)

# What "rule:" may refer to. There is no "absent", and "default" lets managers pass.
NAMED = {
    "default": "role:manager",
    "admins": "role:admin",
    "owner": "project_id:%(project_id)s",
    "either": "rule:admins or rule:owner",
    "nobody": "!",
    "everybody": "@",
    "empty": "",
}

CHECKS = [
    "@",
    "!",
    "role:admin",
    "role:MEMBER",
    "role:%(user_id)s",
    "rule:admins",
    "rule:owner",
    "rule:either",
    "rule:nobody",
    "rule:everybody",
    "rule:empty",
    "rule:absent",
    "project_id:%(project_id)s",
    "project_id:p-%(project_id)s",
    "project_id:p1",
    "user_id:%(user_id)s",
    "user_id:%(absent)s",
    "user_id:%%",
    "roles:member",
    "roles:Member",
    "is_admin:True",
    "is_admin:False",
    "absent:x",
    "absent.below:x",
    "'p1':%(project_id)s",
    '"p1":%(project_id)s',
    "'100%%':100%%",
    "True:True",
    "None:None",
    "None:%(project_id)s",
    "12:12",
    "-3:-3",
    "0:%(user_id)s",
]

SHAPES = [
    "{a}",
    "not {a}",
    "NOT {a}",
    "not not {a}",
    "({a})",
    "( {a} )",
    "{a} and {b}",
    "{a} or {b}",
    "{a} And not {b}",
    "not {a} and {b}",
    "not {a} or {b}",
    "not ({a} or {b})",
    "{a} or {b} and {c}",
    "{a} and {b} or {c}",
    "({a} or {b}) and {c}",
    "{a} and ({b} or {c})",
    "{a} or ({b} and {c}) and {a}",
    "{a} and {b} or {c} and not {a}",
    "{a} or {b} or not {c} and {b}",
    "not ({a} and (not {b} or {c}))",
    "  {a}\tor\n{b}  ",
]

LISTS = [
    [],
    [[]],
    ["role:admin"],
    [["role:admin"], ["role:member", "project_id:%(project_id)s"]],
    [["@", "!"], []],
    [["rule:either"], "role:reader"],
]

# With the roles that theirs imply, which Taibai adds by itself.
CALLERS = [
    {"user_id": "u1", "project_id": "p1", "roles": ["Member", "reader"], "is_admin": False},
    {"user_id": "u2", "project_id": "p2", "roles": ["admin", "manager", "member", "reader"], "is_admin": True},
    {"user_id": "0", "project_id": "None", "roles": ["manager", "member", "reader"], "is_admin": False},
    {"user_id": "%", "project_id": "p-p1", "roles": [], "is_admin": False},
]

TARGETS = [
    {"project_id": "p1", "user_id": "u1"},
    {"project_id": "p2", "user_id": "0"},
    {"project_id": "None"},
    {"project_id": "p1", "user_id": "member"},
]


def rules():
    """Every check alone and negated, and every shape with checks from all over the list."""
    for check in CHECKS:
        yield from (check, f"not {check}")
    size = len(CHECKS)
    for number, shape in enumerate(SHAPES):
        for start in range(0, size, 3):
            a, b, c = (CHECKS[(start + number * step) % size] for step in (1, 5, 11))
            yield shape.format(a=a, b=b, c=c)
    yield ""
    yield from LISTS


def main():
    enforcer = policy.Enforcer(cfg.ConfigOpts(), use_conf=False, default_rule="default")
    named = policy.Rules.from_dict(NAMED, "default")
    cases = []
    for rule in rules():
        if rule in [case["rule"] for case in cases]:
            continue
        enforcer.set_rules(policy.Rules({**named, "asked": policy._parser.parse_rule(rule)}, "default"), use_conf=False)
        # One letter for each caller and target: y or n.
        expected = "".join(
            "y" if enforcer.enforce("asked", dict(target), dict(caller)) else "n"
            for caller in CALLERS
            for target in TARGETS
        )
        cases.append({"rule": rule, "expected": expected})
    version = importlib.metadata.version("oslo.policy")
    head = {"oslo.policy": version, "named": NAMED, "callers": CALLERS, "targets": TARGETS}
    print(json.dumps(head)[:-1] + ', "cases": [')
    print(",\n".join(json.dumps(case) for case in cases))
    print("]}")


main()
