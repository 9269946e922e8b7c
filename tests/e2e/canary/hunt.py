"""Looks for markers, tokens and passwords in everything that a function can read."""
import gc
import hashlib
import os
import re
import sys

# Not as they are written, or they would be found here.
MARKER = re.compile(b"cana" + b"ry-([a-z]+)-[0-9a-f]{16}")
TOKEN = re.compile(b"gAA" + rb"AA[\w-]{80,}")
CANDIDATE = re.compile(b"(?=[0-9a-f]{32})")


def main(digests, length, context=None, **given):
    found, tokens, looked = set(), set(), {}

    def search(place, data):
        looked[place] = looked.get(place, 0) + len(data)
        found.update((place, match.group(1).decode()) for match in MARKER.finditer(data))
        for match in TOKEN.finditer(data):
            digest = hashlib.sha256(match.group()).hexdigest()
            tokens.add(digest)
            if digest in digests:
                found.add((place, digests[digest]))
        for match in CANDIDATE.finditer(data):
            digest = hashlib.sha256(data[match.start():match.start() + length]).hexdigest()
            if digest in digests:
                found.add((place, digests[digest]))

    def read(place, path):
        try:
            with open(path, "rb") as file:
                search(place, file.read(1 << 22))
        except (OSError, ValueError):
            pass

    search("environment", "\n".join("%s=%s" % one for one in os.environ.items()).encode())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("environ", "cmdline", "maps", "mem", "fd/0", "fd/3", "cgroup", "mountinfo", "status"):
            read("processes", "/proc/%s/%s" % (pid, name))
    for top in os.listdir("/"):
        if top in ("proc", "sys"):
            continue
        for directory, _, files in os.walk("/" + top):
            for name in files:
                path = os.path.join(directory, name)
                small = os.path.isfile(path) and os.path.getsize(path) < 1 << 20
                if small and not path.startswith(("/usr/lib/", "/usr/share/")):
                    read("files", path)
    for name in os.listdir("/proc/sys/kernel"):
        read("kernel", "/proc/sys/kernel/" + name)
    for thing in gc.get_objects():
        if isinstance(thing, (dict, list, tuple)):
            held = thing.items() if isinstance(thing, dict) else enumerate(thing)
            for _, value in list(held):
                if isinstance(value, str) and len(value) < 1 << 20:
                    search("objects", value.encode("utf-8", "replace"))
    with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
        for line in list(maps):
            span, rights = line.split()[:2]
            if "r" not in rights or "[v" in line:
                continue
            start, end = (int(part, 16) for part in span.split("-"))
            while start < end:
                try:
                    memory.seek(start)
                    data = memory.read(min(end - start, 1 << 20))
                except (OSError, OverflowError, ValueError):
                    break
                if not data:
                    break
                search("memory", data)
                # A marker may lie across the edge of two pieces.
                start += len(data) if len(data) < 1 << 20 else len(data) - 4096
    return {"found": sorted(found), "tokens": len(tokens), "looked": looked}
