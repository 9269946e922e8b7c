"""Taibai's shim for Python: the parent interpreter of a worker, and what runs in each slot.

The supervisor starts this program once in a container. It loads what functions share, then
forks a slot whenever it is asked to: a process with a user id of its own and no rights, which
runs one execution after another. The messages are described in Taibai's `protocol/src/shim.rs`.

Nothing of a user's runs in the parent: the user's module is imported in the slot. The modules named
in the arguments are the image's own, and are loaded ahead in the parent, for all slots to share.
"""

import ctypes
import errno
import gc
import importlib
import json
import os
import resource
import shutil
import socket
import struct
import sys
import threading
import traceback

# Beside this file, which is not on the path of an isolated interpreter.
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import taibai_session  # noqa: E402

del sys.path[0]

VERSION = 2
CONTROL_FD = 3
MAX_FRAME = 64 << 10
POSITIONAL = "__function_input"

PR_SET_DUMPABLE = 4
LINUX_CAPABILITY_VERSION_3 = 0x20080522

libc = ctypes.CDLL(None, use_errno=True)


# --- frames ---------------------------------------------------------------------------------------


def receive_exactly(channel, count):
    """`count` bytes, or None where the other side has gone."""
    chunks = []
    while count:
        chunk = channel.recv(min(count, 1 << 20))
        if not chunk:
            return None
        chunks.append(chunk)
        count -= len(chunk)
    return b"".join(chunks)


def receive(messages):
    """One message as (name, content), or None at the end."""
    head = messages.read(4)
    if len(head) < 4:
        return None
    size = struct.unpack(">I", head)[0]
    body = messages.read(size)
    if len(body) < size:
        return None
    # Python refuses to read integers that JSON allows, unless it is told otherwise.
    most = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        ((name, content),) = json.loads(body).items()
    finally:
        sys.set_int_max_str_digits(most)
    return name, content


def send(channel, name, content):
    send_raw(channel, b'{"%s":%s}' % (name.encode(), json.dumps(content).encode()))


def send_raw(channel, body):
    channel.sendall(struct.pack(">I", len(body)) + body)


# --- the parent -----------------------------------------------------------------------------------


def private_bytes():
    """Memory of this process that a fork would have to copy to write to."""
    total = 0
    with open("/proc/self/smaps_rollup") as lines:
        for line in lines:
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) << 10
    return total


def resident_bytes():
    """Memory of this process that is no file's, as the supervisor will measure it."""
    total = 0
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(("RssAnon:", "RssShmem:")):
                total += int(line.split()[1]) << 10
    return total


def receive_fork(control):
    """A request for a fork with the two descriptors that came with it."""
    head, descriptors, _, _ = socket.recv_fds(control, 4, 2)
    if not head:
        return None
    while len(head) < 4:
        head += receive_exactly(control, 4 - len(head))
    body = receive_exactly(control, struct.unpack(">I", head)[0])
    return json.loads(body)["fork"], descriptors


def preload(names):
    """Imports modules of the image; gives the libraries that this has loaded, by name."""
    # Libraries look for settings in a home, and fail where there is none. A slot's is empty as well.
    os.environ.setdefault("HOME", "/nonexistent")
    before = set(sys.modules)
    for name in names:
        importlib.import_module(name)
    libraries = tuple(path for path in sys.path if path.endswith("-packages"))
    loaded = {}
    for name in set(sys.modules) - before:
        file = getattr(sys.modules[name], "__file__", None)
        if libraries and file and file.startswith(libraries):
            loaded[name] = sys.modules[name]
    return loaded


def serve_parent():
    control = socket.socket(fileno=CONTROL_FD)
    preloaded = preload(sys.argv[1:])
    # Descriptor 3 was inherited, so it would be inherited on by what a function starts.
    os.set_inheritable(CONTROL_FD, False)
    gc.collect()
    # Kept out of every collection: a collector that writes to objects copies their pages in each slot.
    gc.freeze()
    send(control, "ready", {"version": VERSION, "private_bytes": private_bytes()})
    while True:
        request = receive_fork(control)
        if request is None:
            return
        fork, descriptors = request
        try:
            between = os.fork()
        except OSError as error:
            send(control, "fork_failed", {"slot": fork["slot"], "reason": str(error)})
        else:
            if between == 0:
                # A child of a child that ends at once belongs to the supervisor, which waits for it.
                try:
                    if os.fork():
                        os._exit(0)
                    control.close()
                    serve_slot(fork, descriptors, preloaded)
                finally:
                    os._exit(1)
            os.waitpid(between, 0)
        for descriptor in descriptors:
            os.close(descriptor)


# --- a slot ---------------------------------------------------------------------------------------


class CapabilityHeader(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class CapabilitySets(ctypes.Structure):
    _fields_ = [(name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable")]


def give_up_capabilities():
    header = CapabilityHeader(LINUX_CAPABILITY_VERSION_3, 0)
    nothing = (CapabilitySets * 2)()
    if libc.capset(ctypes.byref(header), ctypes.byref(nothing)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def become(fork):
    """Becomes the slot's user, for good."""
    # Within a session everyone may send SIGCONT to everyone.
    os.setsid()
    os.setgroups([])
    os.setresgid(fork["gid"], fork["gid"], fork["gid"])
    os.setresuid(fork["uid"], fork["uid"], fork["uid"])
    give_up_capabilities()
    # Changing ids hides a process from itself: without this a function could not read its own
    # /proc/self. Nobody else has its user id.
    libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
    os.umask(0o077)
    limits = fork["rlimits"]
    for which, key in (
        (resource.RLIMIT_NOFILE, "open_files"),
        (resource.RLIMIT_NPROC, "processes"),
        (resource.RLIMIT_FSIZE, "file_bytes"),
    ):
        hard = resource.getrlimit(which)[1]
        soft = limits[key] if hard == resource.RLIM_INFINITY else min(limits[key], hard)
        resource.setrlimit(which, (soft, hard))


def serve_slot(fork, descriptors, preloaded):
    channel = socket.socket(fileno=descriptors[0])
    os.dup2(descriptors[1], 1)
    os.dup2(descriptors[1], 2)
    os.close(descriptors[1])
    become(fork)
    work = os.path.join(fork["scratch"], "work")
    os.environ.update(HOME=work, TMPDIR=work, USER="function")
    sys.path.insert(0, fork["package"])
    sys.dont_write_bytecode = True
    slot = Slot(channel, fork, preloaded)
    slot.send("ready", {"pid": os.getpid()})
    # Most messages are one read.
    messages = channel.makefile("rb")
    while True:
        request = receive(messages)
        if request is None:
            os._exit(0)
        slot.run(request[1])
        slot.look_ahead()


def remove(path):
    """Removes a file or a tree, also one whose directories may not be entered."""
    if os.path.islink(path) or not os.path.isdir(path):
        os.unlink(path)
        return
    os.chmod(path, 0o700)
    for directory, names, _ in os.walk(path):
        for name in names:
            inner = os.path.join(directory, name)
            if not os.path.islink(inner):
                os.chmod(inner, 0o700)
    shutil.rmtree(path)


class Slot:
    def __init__(self, channel, fork, preloaded):
        self.channel = channel
        # A thread of the function's may report while the answer is on its way.
        self.channel_lock = threading.Lock()
        self.scratch = fork["scratch"]
        self.package = fork["package"]
        self.directory = os.path.join(self.scratch, "work")
        self.is_fresh = False
        self.preloaded = preloaded
        self.functions = {}
        self.nonce = None
        self.names_limits = False
        self.credentials = taibai_session.Credentials(self.report_refusal)

    def send(self, name, content):
        with self.channel_lock:
            send(self.channel, name, content)

    def report_refusal(self):
        self.send("token_refused", {"nonce": self.nonce})

    def run(self, request):
        nonce = self.nonce = request["nonce"]
        self.names_limits = request.get("names_limits", False)
        try:
            if not self.is_fresh:
                self.enter_fresh_directory()
            self.is_fresh = False
        except OSError as error:
            message = "no fresh working directory: %s" % describe(error)
            self.end("exhausted", {"message": message}, limit_of(error))
            return
        context = self.credentials.begin(request.pop("openstack"), request["request_id"])
        try:
            output = self.invoke(request["entry"], request["input"], context, nonce)
        except SystemExit as end:
            self.leave(nonce, end)
        except BaseException as error:  # a function may raise anything
            self.fail(error)
        else:
            self.give(nonce, output, request["max_result_bytes"])

    def look_ahead(self):
        """Enters the working directory for the next run, where nothing was left in it or beside it.

        After the answer, for which somebody waits. What is to be removed is left to the next run.
        """
        try:
            with os.scandir(self.directory) as entries:
                is_empty = next(entries, None) is None
            os.chdir(self.directory)
            self.is_fresh = is_empty and os.listdir(self.scratch) == ["work"]
        except OSError:
            # It will be said to whom it concerns.
            pass

    def enter_fresh_directory(self):
        """A working directory with nothing in it and nothing beside it, always of the same name."""
        beside = os.listdir(self.scratch)
        os.chdir("/")
        for name in beside:
            remove(os.path.join(self.scratch, name))
        os.mkdir(self.directory)
        os.chdir(self.directory)

    def invoke(self, entry, given, context, nonce):
        try:
            function = self.find(entry, nonce)
            arguments = dict(given or {})
            positional = (arguments.pop(POSITIONAL),) if POSITIONAL in arguments else ()
            return function(*positional, **arguments | {"context": context})
        finally:
            flush()
            # Before the answer, behind which nothing may be sent.
            self.credentials.end()

    def forget_shadowed(self):
        """Unloads what was loaded ahead, where the package brings one of these libraries itself.

        All of it, so that no library meets two versions of another: the function then finds
        what it would find in a new interpreter, its package first.
        """
        ours = {name.partition(".")[0] for name in self.preloaded}
        with os.scandir(self.package) as entries:
            if not any(module_name(entry) in ours for entry in entries):
                return
        # The modules themselves are kept: taking them apart would cost memory.
        for name in self.preloaded:
            sys.modules.pop(name, None)

    def find(self, entry, nonce):
        function = self.functions.get(entry)
        if function is None:
            if not self.functions:
                self.forget_shadowed()
            module, _, name = entry.rpartition(".")
            function = getattr(importlib.import_module(module), name)
            if not self.functions:
                self.send("imported", {"nonce": nonce, "resident_bytes": resident_bytes()})
            self.functions[entry] = function
        return function

    def give(self, nonce, output, most):
        try:
            # Bare NaN and the like are no JSON, whatever Python says.
            body = json.dumps(output, allow_nan=False)
        except BaseException as error:
            reason = "The function returned something that is not JSON: %s" % describe(error)
            self.end("bad_result", {"reason": reason[:4096]}, None)
            return
        if len(body) > most:
            reason = "The function returned %d bytes of JSON; at most %d are allowed" % (len(body), most)
            self.end("bad_result", {"reason": reason}, "result_bytes")
            return
        with self.channel_lock:
            send_raw(self.channel, b'{"returned":{"nonce":%d,"output":%s}}' % (nonce, body.encode()))

    def fail(self, error):
        show(error)
        message = describe(error)
        # What the system refuses a function for want of resources ends the same way as being killed.
        exhausted = isinstance(error, MemoryError) or (isinstance(error, OSError) and "Resource" in message)
        self.end("exhausted" if exhausted else "raised", {"message": message[:4096]}, limit_of(error))

    def end(self, name, content, limit):
        """Tells the end of a run, and which limit it met where the supervisor understands that."""
        content["nonce"] = self.nonce
        if limit is not None and self.names_limits:
            content["limit"] = limit
        self.send(name, content)

    def leave(self, nonce, end):
        code = end.code
        if code is None:
            code = 0
        elif not isinstance(code, int):
            write_output(describe(code) + "\n")
            code = 1
        flush()
        self.send("exited", {"nonce": nonce, "code": code & 0xFF})
        os._exit(code & 0xFF)


def module_name(entry):
    """The module that an entry of a directory on the path would be imported as, or None."""
    name, _, ending = entry.name.partition(".")
    return name if entry.is_dir() or ending.endswith(("py", "pyc", "so")) else None


LIMITS = {
    errno.EAGAIN: "processes",
    errno.EMFILE: "open_files",
    errno.EFBIG: "file_bytes",
    errno.ENOSPC: "scratch_bytes",
    errno.ENOMEM: "memory",
}


def limit_of(error):
    """The limit that an exception speaks of, or None."""
    if isinstance(error, MemoryError):
        return "memory"
    # What the threading module says of it, in no class of its own.
    if type(error) is RuntimeError and error.args == ("can't start new thread",):
        return "processes"
    try:
        return LIMITS.get(error.errno) if isinstance(error, OSError) else None
    except BaseException:
        return None


def describe(error):
    """The text of an exception, which may itself be the user's code."""
    try:
        # A lone surrogate, as in the name of a file that is no UTF-8, is no text for anyone else.
        return str(error).encode("utf-8", "backslashreplace").decode()
    except BaseException:
        return "<%s>" % type(error).__name__


def show(error):
    """Writes the user's part of a traceback into the log."""
    try:
        frames = error.__traceback__
        while frames is not None and frames.tb_frame.f_code.co_filename == __file__:
            frames = frames.tb_next
        write_output("".join(traceback.format_exception(type(error), error, frames)))
    except BaseException:
        write_output("<%s>\n" % type(error).__name__)


def write_output(text):
    """Writes to the log beside `sys.stdout`, which the function may have replaced."""
    flush()
    try:
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(1, data):]
    except OSError:
        pass


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass


if __name__ == "__main__":
    serve_parent()
