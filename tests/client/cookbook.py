"""Qinling's cookbook: three functions as their authors would upload and run them."""

import os
import struct
import zipfile
import zlib


def picture(width, height):
    """A PNG of coloured stripes that compress badly enough to be larger than its thumbnail."""
    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(
        b"\0" + bytes((x * x // 3 + y * channel * 7) & 255 for x in range(width) for channel in range(3))
        for y in range(height)
    )
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def source_of(site, example):
    with open(os.path.join(site.root, "examples", example, "main.py"), encoding="utf-8") as file:
        return file.read()


def hello_world(site):
    """A function whose code is an object in Swift. It stays for what comes after."""
    checks, demo = site.checks, site.demo
    with zipfile.ZipFile(os.path.join(demo.directory, "hello_world.zip"), "w") as package:
        package.writestr("hello_world.py", source_of(site, "hello"))
    demo.do("container", "create", site.container)
    demo.do("object", "create", site.container, "hello_world.zip")
    created = demo.json("function", "create", "--name", site.kept, "--runtime", site.runtime_id,
                        "--entry", "hello_world.main", "--container", site.container,
                        "--object", "hello_world.zip")
    checks.that("function create takes an object in Swift", site.container in str(created["code"]), created)
    done = demo.execute(site.kept)
    checks.equal("hello_world from Swift greets the world",
                 [done["status"], done["result"]["output"]], ["success", "Hello, World"])
    # The client loses which name is which, so all that is left is to say so.
    answer = demo.run("function", "update", site.kept, "--container", site.container, "--object", "other.zip")
    checks.that("function update cannot name another object, and is told how it can be done",
                answer.status != 0 and "send 'code' as JSON" in answer.said, answer.said)
    return created["id"], done["id"]


def test_sleep(site):
    checks, demo = site.checks, site.demo
    with open(os.path.join(demo.directory, "test_sleep.py"), "w", encoding="utf-8") as file:
        file.write(source_of(site, "sleep"))
    demo.do("function", "create", "--name", "test_sleep", "--runtime", site.runtime_id,
            "--file", "test_sleep.py", "--entry", "test_sleep.main")
    done = demo.execute("test_sleep")
    checks.equal("test_sleep is ended after 5 s",
                 [done["status"], done["result"]["output"]], ["failed", "Function execution timeout."])
    checks.that("at about 5.1 s", 5.0 <= done["result"]["duration"] <= 5.6, done["result"])
    demo.do("function", "update", "test_sleep", "--timeout", "15")
    done = demo.execute("test_sleep")
    checks.equal("with --timeout 15 it ends by itself", [done["status"], done["result"]["output"]], ["success", None])
    checks.that("at about 10.1 s", 10.0 <= done["result"]["duration"] <= 10.8, done["result"])
    demo.do("function", "delete", "test_sleep")


def resize_image(site):
    checks, demo = site.checks, site.demo
    original = picture(640, 480)
    with open(os.path.join(demo.directory, "lake.png"), "wb") as file:
        file.write(original)
    demo.do("object", "create", site.container, "lake.png")
    demo.do("function", "create", "--name", "resize_image", "--runtime", site.runtime_id,
            "--package", site.package, "--entry", "main.main")
    done = demo.execute("resize_image", "--input",
                        f'{{"container_name": "{site.container}", "object_name": "lake.png"}}')
    checks.equal("resize_image, with Pillow in its package, succeeds with the default limits",
                 [done["status"], done["result"]["output"]], ["success", None])
    log = demo.do("function", "execution", "log", "show", done["id"]).out.splitlines()
    target = site.container + "_thumb"
    demo.do("object", "save", target, "lake_thumb.png", "--file", "thumb.png")
    with open(os.path.join(demo.directory, "thumb.png"), "rb") as file:
        thumbnail = file.read()
    for line in [
        f"downloaded lake.png from {site.container}: {len(original)} bytes",
        "resized from 640x480 to 128x96",
        f"uploaded lake_thumb.png to {target}: {len(thumbnail)} bytes",
    ]:
        checks.that(f"its log has: {line.replace(site.container, 'CONTAINER')}", line in log, log)
    size = struct.unpack(">II", thumbnail[16:24])
    checks.that("Swift has a smaller picture", size == (128, 96) and len(thumbnail) < len(original), size)
    demo.do("function", "delete", "resize_image")
