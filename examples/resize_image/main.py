import os

import swiftclient
from PIL import Image

SIZE = (128, 128)


def main(context, container_name, object_name, region_name=None, **kwargs):
    swift = swiftclient.Connection(session=context["os_session"], os_options={"region_name": region_name})
    name, kind = os.path.splitext(os.path.basename(object_name))
    thumbnail = f"{name}_thumb{kind}"

    _, content = swift.get_object(container_name, object_name)
    with open("original" + kind, "wb") as file:
        file.write(content)
    print(f"downloaded {object_name} from {container_name}: {len(content)} bytes")

    with Image.open("original" + kind) as image:
        before = image.size
        image.thumbnail(SIZE)
        image.save(thumbnail)
        print(f"resized from {before[0]}x{before[1]} to {image.width}x{image.height}")

    with open(thumbnail, "rb") as file:
        content = file.read()
    target = f"{container_name}_thumb"
    swift.put_container(target)
    swift.put_object(target, thumbnail, contents=content)
    print(f"uploaded {thumbnail} to {target}: {len(content)} bytes")
