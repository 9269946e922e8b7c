"""The runner itself: what it reads from a page, and when it says that a command printed something else."""

import unittest

import commands
import pages

PAGE = """
<!-- as: admin -->
```console
$ echo one \\
    two
one two
# printf 'a\\nb\\n'
…
```

<!-- file: a.py -->
```python
pass
```

<!-- not run: no reason
     at all -->
```console
$ reboot
```
Text <!-- fails --> that belongs to no block.
```console
$ true
```
"""


class Reading(unittest.TestCase):
    def test_blocks_have_the_comments_right_before_them(self):
        marks = [block.marks for block in pages.blocks(PAGE)]
        self.assertEqual(marks, [{"as": "admin"}, {"file": "a.py"}, {"not run": "no reason\n     at all"}, {}])

    def test_commands_go_on_behind_a_backslash_and_have_their_output(self):
        found = [(command.text, command.output) for command in pages.blocks(PAGE)[0].commands()]
        self.assertEqual(found, [("echo one \\\n    two", ["one two"]), ("printf 'a\\nb\\n'", ["…"])])


class Comparing(unittest.TestCase):
    def test_what_differs_from_run_to_run_does_not_count(self):
        shown = ['{"id":"7e1d0a4e-6d0b-4f7e-8a39-0f3f0d5f2c10","duration":0.1}', "| a  |", "…", "end"]
        printed = ['{"id":"00000000-6d0b-4f7e-8a39-0f3f0d5f2c10","duration":2.75}', "| a |", "x", "y", "end"]
        self.assertTrue(commands.matches(shown, printed))

    def test_all_else_does(self):
        for shown, printed in [
            (["one"], ["two"]), (["one"], ["one", "two"]), (["one", "two"], ["one"]), (["a…c"], ["abd"]), (["one"], []),
            (['{"output":1}'], ['{"output":2}']),
        ]:
            self.assertFalse(commands.matches(shown, printed), (shown, printed))


if __name__ == "__main__":
    unittest.main()
