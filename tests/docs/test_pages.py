"""The runner itself: what it reads from a page, and when it says that a command printed something else."""

import contextlib
import io
import os
import tempfile
import unittest
import unittest.mock

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

# Above it

<!-- run by: ops
     by-hand -->
```console
$ reboot
> now
```
Text <!-- fails --> that belongs to no block.
```console
$ true
```
"""


class Reading(unittest.TestCase):
    def test_blocks_have_the_comments_right_before_them(self):
        marks = [block.marks for block in pages.blocks(PAGE)]
        self.assertEqual(marks, [{"as": "admin"}, {"file": "a.py"}, {"run by": "ops\n     by-hand"}, {}])

    def test_blocks_know_their_section(self):
        self.assertEqual([block.section for block in pages.blocks(PAGE)], ["", "", "Above it", "Above it"])

    def test_commands_go_on_behind_a_backslash_and_have_their_output(self):
        found = [(command.text, command.output) for command in pages.blocks(PAGE)[0].commands()]
        self.assertEqual(found, [("echo one \\\n    two", ["one two"]), ("printf 'a\\nb\\n'", ["…"])])


class Elsewhere(unittest.TestCase):
    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.record = os.path.join(self.directory.name, "record")
        for name, value in [("every_page", lambda: ["page.md"]), ("read", lambda _: pages.blocks(PAGE))]:
            patch = unittest.mock.patch.object(pages, name, value)
            patch.start()
            self.addCleanup(patch.stop)

    def ask(self, *arguments):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            return pages.main(*arguments), printed.getvalue()

    def test_a_part_has_to_ask_for_every_block_that_is_marked_for_it(self):
        with open(self.record, "w", encoding="utf-8"):
            pass
        self.assertEqual(self.ask("all", "ops", self.record)[0], "ops has not run: page.md by-hand")
        self.assertEqual(self.ask("block", "ops", "page.md", "by-hand", self.record), (0, "reboot\nnow\n"))
        self.assertEqual(self.ask("all", "ops", self.record)[0], 0)

    def test_a_block_that_is_not_marked_so_is_no_other_parts(self):
        for part, name in [("tempest", "by-hand"), ("ops", "another")]:
            self.assertIn("has 0 blocks", self.ask("block", part, "page.md", name, self.record)[0])


class Staying(unittest.TestCase):
    """What goes on until the page ends."""

    def setUp(self):
        self.directory = tempfile.TemporaryDirectory()
        self.addCleanup(self.directory.cleanup)
        self.shell = commands.Shell(
            {"environment": {}, "directory": self.directory.name, "scratch": self.directory.name, "prelude": os.devnull})
        self.addCleanup(self.shell.end)

    def test_it_is_told_to_end_by_ctrl_c(self):
        self.assertIsNone(self.shell.start("bash -c 'trap \"exit 0\" INT; echo up; while :; do sleep 0.1; done'", "up"))
        self.assertIsNone(self.shell.interrupt())

    def test_one_that_ends_with_an_error_is_told_of(self):
        self.assertIsNone(self.shell.start("bash -c 'trap \"exit 7\" INT; echo up; while :; do sleep 0.1; done'", "up"))
        self.assertIn("ended with 7", self.shell.interrupt())

    def test_one_that_never_gets_there_is_told_of(self):
        self.assertIn("should print: up", self.shell.start("echo down", "up"))


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
