#!/usr/bin/env python3
"""Compares two bench.json and says what got slower: compare.py OLD NEW [--beyond FACTOR].

Machines and hours differ, so a row that has a ratio to something of its own run is compared by that. The
exit status is 1 where a row became worse by more than the factor, where a promise that was met is not met
any more, or where a row is gone; 2 where a file cannot be used.
"""

import argparse
import json
import sys

# Of these units more is better.
RATES = {'1/s'}


def figures(row):
    """What of a row is compared: by name, the figure and whether more of it is better."""
    better = row['unit'] in RATES
    if 'ratio' in row:
        yield 'ratio to ' + row['ratio']['to'], row['ratio']['value'], better
    elif 'value' in row:
        yield row['unit'] or 'value', row['value'], better
    else:
        yield 'p50', row['p50'], better
    if 'p99' in row:
        yield 'p99', row['p99'], better


def read(path):
    with open(path, encoding='utf-8') as file:
        rows = json.load(file)['rows']
    return {row['name']: row for row in rows}


def compare(old, new, beyond):
    """Sentences about what became worse, and about what became better, by more than the factor."""
    worse, improved = [], []
    for name, before in old.items():
        after = new.get(name)
        if after is None:
            worse.append(f'{name}: not measured any more')
            continue
        known = {what: (figure, better) for what, figure, better in figures(after)}
        for what, figure, better in figures(before):
            if what not in known:
                worse.append(f'{name}: {what} is not there any more')
                continue
            now, _ = known[what]
            # A tail is a few calls of many: it has to be twice as far out.
            factor = 1 + 2 * (beyond - 1) if what == 'p99' else beyond
            text = f'{name}: {what} {figure:.3f} -> {now:.3f}'
            lower, higher = sorted((figure, now))
            if higher <= max(lower, 0) * factor:
                continue
            (improved if (now > figure) == better else worse).append(text)
        kept = {promise['text'] for promise in after['promises'] if promise['met']}
        for promise in before['promises']:
            if promise['met'] and promise['text'] not in kept:
                worse.append(f"{name}: the promise is not met any more: {promise['text']}")
    return worse, improved


def main(arguments):
    parser = argparse.ArgumentParser(description='Says what of a benchmark got slower.')
    parser.add_argument('old')
    parser.add_argument('new')
    parser.add_argument('--beyond', type=float, default=1.3, help='factor by which a figure may differ (1.3)')
    options = parser.parse_args(arguments)
    try:
        old, new = read(options.old), read(options.new)
        worse, improved = compare(old, new, options.beyond)
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f'compare.py: the files cannot be compared: {error!r}', file=sys.stderr)
        return 2
    for text in improved:
        print(f'better: {text}')
    for text in worse:
        print(f'worse: {text}')
    for name in new.keys() - old.keys():
        print(f'new: {name}')
    print(f'{len(worse)} worse, {len(improved)} better, of {len(old)} rows')
    return 1 if worse else 0


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
