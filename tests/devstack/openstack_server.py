#!/usr/bin/env python3
"""The published client, loaded once: DevStack and its plugin call it a hundred times, and loading it takes a second.

    openstack_server.py serve SOCKET          loads it, and forks a process for each call
    openstack_server.py call SOCKET [WORD...] `openstack WORD...`, with this process's files, directory and environment
"""

import array
import json
import logging
import os
import signal
import socket
import sys


def run(words, directory, environment):
    """One call, in a process of its own."""
    from openstackclient import shell

    # Every call adds its own.
    logging.getLogger().handlers.clear()
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["openstack", *words]
    try:
        return shell.main(words)
    except SystemExit as done:
        return done.code


def answer(connection):
    size = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
    files = array.array("i")
    _, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_SPACE(3 * files.itemsize))
    files.frombytes(ancillary[0][2])
    words, directory, environment = json.loads(connection.recv(size, socket.MSG_WAITALL))
    for target, file in enumerate(files):
        os.dup2(file, target)
        os.close(file)
    status = 1
    try:
        status = run(words, directory, environment) or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        connection.sendall(bytes([status if isinstance(status, int) else 1]))
    os._exit(0)


def serve(path):
    from openstackclient import shell

    # What every call needs is imported by one, whose words do not matter.
    for words in (["help", "function", "execution", "create"], ["help", "endpoint", "create"], ["help", "token", "issue"]):
        keep = os.dup(1)
        with open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            shell.main(words)
            sys.stdout.flush()
        os.dup2(keep, 1)
        os.close(keep)
    import keystoneauth1.identity.v3.password  # noqa: F401
    import keystoneclient.v3.client  # noqa: F401
    import openstack.identity.v3._proxy  # noqa: F401
    import qinlingclient.v1.client  # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + ".new")
    listener.listen(16)
    os.rename(path + ".new", path)
    while True:
        connection, _ = listener.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            answer(connection)
        connection.close()


def call(path, *words):
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(path)
    question = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    connection.sendall(len(question).to_bytes(4, "big"))
    connection.sendmsg([b"."], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    connection.sendall(question)
    # A process that died says nothing.
    sys.exit((connection.recv(1) or b"\1")[0])


if __name__ == "__main__":
    {"serve": serve, "call": call}[sys.argv[1]](*sys.argv[2:])
