import time


def main(seconds=10, **kwargs):
    print(f"sleeping for {seconds} s")
    time.sleep(seconds)
