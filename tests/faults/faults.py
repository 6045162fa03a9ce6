#!/usr/bin/env python3
"""Runs schedules of faults against a real service of several processes and checks what its clients
saw, message by message (README.md).

    faults.py [--build DIR] --matrix [--only REGEX] [--requests N] [--resume FILE]
    faults.py [--build DIR] --seed S --count N
    faults.py [--build DIR] --soak [--minutes M] [--seed S] [--layout LAYOUT]
"""

import argparse
import json
import pathlib
import random
import re
import sys
import time

sys.dont_write_bytecode = True

import service as faulty  # noqa: E402  (makes tests/e2e importable)
import cells as matrix_cells  # noqa: E402
import soak  # noqa: E402


def say(line):
    print(line, flush=True)


def report(outcome):
    verdict = "ok" if not outcome.problems else "FAILED"
    say(f"{verdict:6} {outcome.cell.name:42} {outcome.requests:3} requests, "
        f"{outcome.under_way:2} under way, found in {outcome.detection:5.2f} s, "
        f"pause {outcome.pause:5.2f} s, {outcome.seconds:5.1f} s")
    for problem in outcome.problems:
        say(f"       {problem}")


def table(outcomes):
    """Cells by layout and point: passed of all, slowest detection."""
    say("")
    points = [*matrix_cells.POINTS, "end"]
    say(f"{'layout':12}" + "".join(f"{point:>18}" for point in points))
    layouts = list(dict.fromkeys(outcome["layout"] for outcome in outcomes))
    for layout in layouts:
        row = f"{layout:12}"
        for point in points:
            here = [o for o in outcomes if o["layout"] == layout and o["point"] == point]
            passed = sum(not o["problems"] for o in here)
            slowest = max([o["detection"] for o in here], default=0.0)
            row += f"{f'{passed}/{len(here)} {slowest:.2f} s' if here else '-':>18}"
        say(row)


def summary(outcomes):
    requests = sum(o["requests"] for o in outcomes)
    lost = sum(o["lost"] for o in outcomes)
    failed = sum(bool(o["problems"]) for o in outcomes)
    slowest = max([o["detection"] for o in outcomes], default=0.0)
    dead = max([o["detection"] for o in outcomes if o["action"] != "sigstop"], default=0.0)
    cells = sum(o["point"] != "end" for o in outcomes)
    misnamed = sum(o.get("misnamed", 0) for o in outcomes)
    say(f"{cells} cells, {requests} requests, {lost} lost, slowest detection {slowest:.2f} s "
        f"(of a death {dead:.2f} s), {misnamed} named by another rank, {failed} cells failed")
    return failed == 0 and lost == 0


def run_cells(cells, arguments):
    """Runs them in order; with --resume, those that a file has as passed are not run again."""
    known = {}
    resume = pathlib.Path(arguments.resume) if arguments.resume else None
    if resume is not None and resume.exists():
        for line in resume.read_text().splitlines():
            record = json.loads(line)
            if not record["problems"]:
                known[record["name"]] = record
    runner = matrix_cells.Runner(arguments.seed, arguments.requests, say)
    outcomes = []

    def keep(outcome):
        report(outcome)
        cell = outcome.cell
        record = {"name": cell.name, "layout": cell.layout, "point": cell.point,
                  "action": cell.action, "requests": outcome.requests, "lost": outcome.lost,
                  "misnamed": outcome.misnamed, "detection": outcome.detection,
                  "problems": outcome.problems}
        outcomes.append(record)
        if resume is not None:
            with resume.open("a") as file:
                file.write(json.dumps(record) + "\n")

    try:
        for i, cell in enumerate(cells):
            if cell.name in known:
                outcomes.append(known[cell.name])
                continue
            keep(runner.run(cell))
            if i + 1 == len(cells) or cells[i + 1].layout != cell.layout:
                keep(runner.finish_layout(cell))
    finally:
        runner.close()
    return outcomes


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    root = pathlib.Path(__file__).resolve().parents[2]
    parser.add_argument("--build", default=root / "build" / "release")
    parser.add_argument("--matrix", action="store_true")
    parser.add_argument("--only", default="", help="cells whose name matches this expression")
    parser.add_argument("--requests", type=int, default=6, help="of each cell")
    parser.add_argument("--resume", help="file of outcomes; cells that passed are not run again")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=0, help="cells drawn by the seed")
    parser.add_argument("--soak", action="store_true", help="traffic of the trace, random faults")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--layout", default="tp=2", choices=[*matrix_cells.ROLES])
    arguments = parser.parse_args()
    faulty.use(arguments.build)

    if arguments.soak:
        sys.exit(0 if soak.soak(arguments.layout, arguments.minutes, arguments.seed, say) else 1)
    begin = time.monotonic()
    cells = matrix_cells.matrix()
    if arguments.only:
        cells = [cell for cell in cells if re.search(arguments.only, cell.name)]
    if arguments.count:
        drawn = set(random.Random(arguments.seed).sample(range(len(cells)),
                                                         min(arguments.count, len(cells))))
        cells = [cell for i, cell in enumerate(cells) if i in drawn]
    elif not arguments.matrix:
        parser.error("what to run? --matrix or --count")
    if not cells:
        parser.error(f"no cell's name matches {arguments.only!r}")
    outcomes = run_cells(cells, arguments)
    table(outcomes)
    passed = summary(outcomes)
    say(f"{time.monotonic() - begin:.0f} s, seed {arguments.seed}")
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
