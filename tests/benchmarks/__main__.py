"""`python -m tests.benchmarks [NAME ...] [--all] [--json]`: figures against peers, as ratios within this run."""

import argparse
import json
import sys

from tests.benchmarks import finetuning, kmeans, scale, scaling, scoring, sweep
from tests.benchmarks.harness import Ratio, peaks

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        scoring.BENCHMARK,
        finetuning.BENCHMARK,
        kmeans.BENCHMARK,
        kmeans.LARGE,
        scale.READING,
        scale.READING_LARGE,
        scale.SELECTING,
        scale.SELECTING_LARGE,
        scaling.SCORING,
        scaling.KMEANS,
        sweep.BENCHMARK,
    )
}


def main() -> int:
    """Run the benchmarks that were asked for, print a line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(BENCHMARKS))
    parser.add_argument("--all", action="store_true", help="the large ones too")
    parser.add_argument("--json", action="store_true", help="one JSON object")
    asked = parser.parse_args()
    if unknown := sorted(set(asked.names) - set(BENCHMARKS)):
        parser.error(f"unknown benchmark {unknown[0]!r}, expected some of {', '.join(BENCHMARKS)}")
    chosen = [
        benchmark
        for benchmark in BENCHMARKS.values()
        if (benchmark.name in asked.names if asked.names else asked.all or not benchmark.is_large)
    ]
    machine, found = peaks(), dict[str, list[Ratio]]()
    if not asked.json:
        print(", ".join(f"{name} {value}" for name, value in machine.items()))
    for benchmark in chosen:
        print(f"{benchmark.name}: {benchmark.says}", file=sys.stderr, flush=True)
        found[benchmark.name] = []
        for ratio in benchmark.measure():
            found[benchmark.name].append(ratio)
            if not asked.json:
                print(ratio, flush=True)
    if asked.json:
        figures = {name: [ratio.as_dict() for ratio in ratios] for name, ratios in found.items()}
        print(json.dumps({"machine": machine, "figures": figures}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
