#!/usr/bin/env python3
"""Tests of compare.py."""

import contextlib
import io
import json
import os
import sys
import tempfile
import unittest

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))

import compare  # noqa: E402


def row(name='call', unit='ms', promises=(), **figures):
    promises = [{'text': text, 'met': met} for text, met in promises]
    return {'name': name, 'unit': unit, 'n': 100, 'promises': promises, **figures}


def worse(before, after, beyond=1.3):
    return compare.compare({'call': before}, {'call': after} if after else {}, beyond)[0]


class Compare(unittest.TestCase):
    def test_the_same_is_not_worse(self):
        for figures in ({'p50': 1.0, 'p99': 2.0}, {'value': 0.0}, {'value': 5.0}):
            self.assertEqual(worse(row(**figures), row(**figures)), [])

    def test_more_time_is_worse_and_less_is_better(self):
        slow, quick = row(p50=2.0, p99=3.0), row(p50=1.0, p99=2.9)
        self.assertEqual(worse(quick, slow), ['call: p50 1.000 -> 2.000'])
        found, improved = compare.compare({'call': slow}, {'call': quick}, 1.3)
        self.assertEqual((found, improved), ([], ['call: p50 2.000 -> 1.000']))

    def test_within_the_factor_nothing_is_said(self):
        self.assertEqual(worse(row(p50=1.0, p99=2.0), row(p50=1.29, p99=3.1)), [])
        self.assertEqual(len(worse(row(p50=1.0, p99=2.0), row(p50=1.29, p99=3.1), beyond=1.1)), 2)

    def test_a_tail_may_move_twice_as_far(self):
        self.assertEqual(worse(row(p50=1.0, p99=2.0), row(p50=1.0, p99=3.3)), ['call: p99 2.000 -> 3.300'])

    def test_of_a_rate_less_is_worse(self):
        many, few = row(unit='1/s', value=3000.0), row(unit='1/s', value=2000.0)
        self.assertEqual(worse(many, few), ['call: 1/s 3000.000 -> 2000.000'])
        self.assertEqual(worse(few, many), [])

    def test_a_ratio_counts_and_not_the_hour(self):
        def at(p50, ratio):
            return row(p50=p50, p99=p50 * 2, ratio={'to': 'floor', 'value': ratio})

        self.assertEqual(worse(at(1.0, 2.0), at(1.5, 2.1)), [])
        self.assertEqual(worse(at(1.0, 2.0), at(1.0, 3.0)), ['call: ratio to floor 2.000 -> 3.000'])

    def test_what_shrank_below_nothing_is_better(self):
        found, improved = compare.compare(
            {'call': row(unit='MiB', value=3.0)}, {'call': row(unit='MiB', value=-1.0)}, 1.3
        )
        self.assertEqual((found, len(improved)), ([], 1))

    def test_a_promise_that_is_broken_is_worse(self):
        met, broken = row(p50=1.0, p99=1.0, promises=[('fast', True)]), row(p50=1.0, p99=1.0, promises=[('fast', False)])
        self.assertEqual(worse(met, broken), ['call: the promise is not met any more: fast'])
        self.assertEqual(worse(broken, met), [])

    def test_a_row_that_is_gone_is_worse(self):
        self.assertEqual(worse(row(p50=1.0, p99=1.0), None), ['call: not measured any more'])


class Program(unittest.TestCase):
    def run_on(self, *texts):
        with tempfile.TemporaryDirectory() as directory:
            paths = []
            for number, text in enumerate(texts):
                paths.append(os.path.join(directory, f'{number}.json'))
                with open(paths[-1], 'w', encoding='utf-8') as file:
                    file.write(text)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                status = compare.main(paths)
        return status, printed.getvalue()

    def test_the_exit_status_tells(self):
        quick, slow = (json.dumps({'rows': [row(p50=p50, p99=9.0)]}) for p50 in (1.0, 2.0))
        self.assertEqual(self.run_on(quick, quick), (0, '0 worse, 0 better, of 1 rows\n'))
        self.assertEqual(self.run_on(slow, quick)[0], 0)
        status, printed = self.run_on(quick, slow)
        self.assertEqual(status, 1)
        self.assertIn('worse: call: p50 1.000 -> 2.000', printed)

    def test_what_is_no_benchmark_is_an_error(self):
        for text in ('', '[]', '{"rows": [{}]}'):
            self.assertEqual(self.run_on(text, text)[0], 2)


if __name__ == '__main__':
    # One line, which tox-like-scripts/test counts.
    result = unittest.TextTestRunner(verbosity=1).run(unittest.defaultTestLoader.loadTestsFromModule(sys.modules[__name__]))
    failed = len(result.failures) + len(result.errors)
    print(f'passed {result.testsRun - failed}, failed {failed} in compare')
    sys.exit(1 if failed else 0)
