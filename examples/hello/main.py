def main(name="World", **kwargs):
    print(f"greeting {name}")
    return f"Hello, {name}"
