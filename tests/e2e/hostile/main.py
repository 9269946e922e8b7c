"""Does what a stranger might: `do` names it."""
import ctypes
import gc
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time

libc = ctypes.CDLL(None, use_errno=True)


def main(do, context=None, **given):
    return globals()[do](**given)


def good():
    return "good"


def source():
    with open(__file__) as file:
        return file.read()


# --- what reaches out -----------------------------------------------------------------------------


def probe(targets, sockets):
    """Everything that worked, by name, and how much was tried."""
    worked, tried = [], 0

    def attempt(name, action):
        nonlocal tried
        tried += 1
        try:
            action()
        except (OSError, ValueError):
            return
        worked.append(name)

    def call(name, number, *arguments):
        nonlocal tried
        tried += 1
        if libc.syscall(number, *arguments) >= 0:
            worked.append(name)

    def connect(family, address):
        with socket.socket(family) as client:
            client.settimeout(3)
            client.connect(address)

    for host, port in targets:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        attempt("connect %s %d" % (host, port), lambda: connect(family, (host, port)))
    known = ["/var/run/docker.sock", "/run/docker.sock", "/run/containerd/containerd.sock", "/taibai/private/run/s"]
    for directory, names, files in os.walk("/"):
        if directory == "/":
            names[:] = [name for name in names if name not in ("proc", "sys")]
        known += [os.path.join(directory, file) for file in files if is_socket(os.path.join(directory, file))]
        mine = directory.startswith((os.path.dirname(os.getcwd()), "/tmp", "/dev/shm", "/dev/mqueue"))
        if not mine:
            path = os.path.join(directory, "hostile")
            attempt("create " + path, lambda: os.close(os.open(path, os.O_CREAT | os.O_WRONLY)))
    for path in known + sockets:
        name = "\0" + path[1:] if path.startswith("@") else path
        attempt("socket " + path, lambda: connect(socket.AF_UNIX, name))

    # Other processes: the supervisor, the parent, other slots.
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
        attempt("trace %d" % pid, lambda: trace(pid))
        attempt("read memory of %d" % pid, lambda: open("/proc/%d/mem" % pid, "rb").read(1))
        attempt("environment of %d" % pid, lambda: open("/proc/%d/environ" % pid, "rb").read(1))
        attempt("signal %d" % pid, lambda: os.kill(pid, signal.SIGCONT))
        for number in range(12):
            attempt("write to %d of %d" % (number, pid), lambda: open("/proc/%d/fd/%d" % (pid, number), "wb", 0).write(b"FORGED"))

    # Rights.
    attempt("setuid", lambda: os.setuid(0))
    attempt("setgid", lambda: os.setgid(0))
    attempt("setgroups", lambda: os.setgroups([0]))
    attempt("setresuid", lambda: os.setresuid(0, 0, 0))
    attempt("chroot", lambda: os.chroot("/tmp"))
    attempt("clock", lambda: time.clock_settime(time.CLOCK_REALTIME, time.time()))
    attempt("raw socket", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP).close())
    attempt("packet socket", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close())
    attempt("device", lambda: os.mknod("/tmp/device", 0o60666, os.makedev(8, 0)))
    attempt("memory device", lambda: os.mknod("/tmp/memory", 0o20666, os.makedev(1, 1)))
    attempt("less likely to be killed", lambda: open("/proc/self/oom_score_adj", "wb", 0).write(b"-1000"))
    attempt("core pattern", lambda: open("/proc/sys/kernel/core_pattern", "wb", 0).write(b"core"))
    for name, flag in [("user", 0x10000000), ("mount", 0x20000), ("pid", 0x20000000), ("net", 0x40000000),
                       ("ipc", 0x08000000), ("uts", 0x04000000), ("cgroup", 0x02000000)]:
        call("new %s namespace" % name, 272, flag)
        attempt("enter %s namespace" % name, lambda: os.close(os.open("/proc/1/ns/" + {"mount": "mnt"}.get(name, name), os.O_RDONLY)))
    call("mount", 165, b"none", b"/tmp", b"tmpfs", 0, None)
    call("bind", 165, b"/", b"/tmp", None, 4096, None)
    call("remount", 165, None, b"/", None, 32, None)
    call("unmount", 166, b"/tmp", 2)
    call("pivot", 155, b"/tmp", b"/tmp")
    call("open a tree", 428, -100, b"/", 1)
    call("swap", 167, b"/tmp/swap", 0)
    call("name of the host", 170, b"other", 5)
    call("ports", 172, 3)
    call("module", 175, b"x", 1, b"")
    call("kexec", 246, 0, 0, None, 0)
    call("bpf", 321, 0, b"\x02\0\0\0\x04\0\0\0\x04\0\0\0\x01\0\0\0" + bytes(96), 112)
    call("perf", 298, bytes(128), 0, -1, -1, 0)
    call("key", 248, b"user", b"k", b"v", 1, -2)
    call("kernel log", 103, 3, ctypes.create_string_buffer(64), 64)
    call("file by handle", 304, -100, bytes(64), 0)
    return {"worked": worked, "tried": tried}


def is_socket(path):
    try:
        return os.lstat(path).st_mode & 0o170000 == 0o140000
    except OSError:
        return False


def trace(pid):
    # PTRACE_SEIZE, which does not stop it.
    if libc.ptrace(0x4206, pid, None, None) != 0:
        raise OSError(ctypes.get_errno(), "ptrace")


def second_package():
    """Loads another package with the supervisor's own helper, and over what is there."""
    limits = '{"max_entries":10,"max_expanded_bytes":1000000,"max_ratio":100}'
    for arguments, what in [(["--clean", "/taibai/work/package"], b""), (["--unpack", limits], package())]:
        subprocess.run(["/taibai/supervisor", *arguments], input=what, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for action in (lambda: os.unlink(__file__), lambda: os.rename(__file__, "/tmp/main.py"),
                   lambda: open(__file__, "w").write("def main(**_): return 'replaced'\n")):
        try:
            action()
        except OSError:
            pass
    return os.listdir(os.path.dirname(__file__))


def package():
    import io
    import zipfile

    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as file:
        file.writestr("second.py", "def main(**_): return 'second'\n")
    return held.getvalue()


# --- what takes all there is ----------------------------------------------------------------------


def fork_bomb():
    while True:
        try:
            os.fork()
        except OSError:
            pass


def fill(path):
    """Bytes that could be written before there was no room."""
    written = 0
    try:
        for number in range(100_000):
            with open(os.path.join(path, "fill%d" % number), "wb", 0) as file:
                for _ in range(64):
                    written += file.write(b"x" * (1 << 20))
    except OSError as error:
        return {"written": written, "error": error.errno}


def fill_names():
    """Files that could be made, in two seconds or until there was no room for another."""
    made, end = 0, time.monotonic() + 2
    try:
        while time.monotonic() < end:
            os.close(os.open("n%d" % made, os.O_CREAT | os.O_WRONLY))
            made += 1
    except OSError as error:
        return {"made": made, "error": error.errno}
    return {"made": made}


def fill_memory():
    kept = []
    while True:
        kept.append(b"x" * (16 << 20))


def fill_log():
    line = b"y" * 8191 + b"\n"
    while True:
        os.write(1, line)


def hold_descriptors():
    return len([open("/dev/null") for _ in range(100_000)])


# --- what will not end ----------------------------------------------------------------------------


def become_daemon(marker):
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv("/bin/sleep", [marker, "600"])
        os._exit(0)


def daemon(marker):
    become_daemon(marker)
    return "away"


def daemon_at_the_deadline(marker):
    become_daemon(marker)
    time.sleep(600)


def deaf():
    signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
    while True:
        pass


def stops_everyone():
    for _ in range(3):
        os.fork()
    while True:
        try:
            os.kill(-1, signal.SIGSTOP)
        except OSError:
            pass


# --- what answers wrongly -------------------------------------------------------------------------


def channel():
    # With its timeout, where it has one, put away.
    found = next(one for one in gc.get_objects() if isinstance(one, socket.socket))
    found.settimeout(None)
    return found


def nonce():
    frame = sys._getframe()
    while "nonce" not in frame.f_locals:
        frame = frame.f_back
    return frame.f_locals["nonce"]


def send(body):
    channel().sendall(struct.pack(">I", len(body)) + body)


def garbage():
    channel().sendall(os.urandom(1 << 20))
    time.sleep(600)


def forge():
    for number in range(64):
        send(b'{"returned":{"nonce":%d,"output":"FORGED"}}' % (nonce() + 1 + number))
    time.sleep(600)


def stream_a_gigabyte():
    held = channel()
    held.sendall(struct.pack(">I", 1 << 30))
    piece = b"x" * (1 << 20)
    for _ in range(1 << 10):
        held.sendall(piece)
    time.sleep(600)


def deep_answer(depth):
    # Before the shim gives its own.
    send(b'{"returned":{"nonce":%d,"output":%s}}' % (nonce(), b"[" * depth + b"]" * depth))


def deep_result(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


def gigabyte():
    return "x" * (1 << 30)


def crash():
    ctypes.string_at(0)


def close_everything():
    os.closerange(0, 4096)
    time.sleep(600)


# --- two of one function --------------------------------------------------------------------------


def victim(seconds):
    began = time.time()
    print("mine")
    time.sleep(seconds)
    print("still mine")
    return {"said": "mine", "began": began, "ended": time.time()}


def forge_for_others():
    """Writes into whatever is open in other processes, and answers in their place."""
    began, tried = time.time(), 0
    while time.time() < began + 0.5:
        for pid in [name for name in os.listdir("/proc") if name.isdigit() and int(name) != os.getpid()]:
            for number in range(16):
                tried += 1
                try:
                    with open("/proc/%s/fd/%d" % (pid, number), "wb", 0) as file:
                        file.write(b"FORGED\n")
                except OSError:
                    pass
    return {"tried": tried, "began": began, "ended": time.time()}
