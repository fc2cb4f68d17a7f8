"""The campaign: every target with its number of cases, each in a process of its own.

    make fuzz
    python -m tests.fuzz [--scale 0.01] [--seed 1] [TARGET ...]

What it finds is printed, and the exit code says whether there was anything. A whole campaign leaves its record in
benchmarks/results/fuzz.json.
"""

import argparse
import sys

from benchmarks.harness import markdown_table, save
from tests.fuzz.child import judged_in_child
from tests.fuzz.targets import TARGETS


def main() -> int:
    """Runs the targets one after the other; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.fuzz", description="Feeds the server and its readers bad input."
    )
    parser.add_argument("targets", nargs="*", help="names of targets; default: all")
    parser.add_argument("--scale", type=float, default=1.0, help="share of each target's cases; default: 1")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same cases; default: 1")
    options = parser.parse_args()
    results = []
    for target in TARGETS:
        if options.targets and target.name not in options.targets:
            continue
        result = judged_in_child(target, max(round(options.scale * target.cases), 1), options.seed)
        results.append(result)
        print(
            f"{target.name}: {result['cases']:,} cases, {result['seconds']:.0f} s",
            *result["found"],
            sep="\n",
            flush=True,
        )
    cases, found = sum(result["cases"] for result in results), sum(len(result["found"]) for result in results)
    whole = options.scale == 1 and not options.targets
    save("fuzz" if whole else "fuzz_quick", {"seed": options.seed, "cases": cases, "found": found, "targets": results})
    rows = [[r["what"], r["search"], f"{r['cases']:,}", f"{r['seconds']:.0f} s", len(r["found"])] for r in results]
    print(markdown_table(["fed", "search", "cases", "time", "found"], [*rows, ["in all", "", f"{cases:,}", "", found]]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
