"""Pipeline stages that are processes under mpirun work in the order that the pipeline's rules say:
the step traces of a real run (`--step-trace`).

    step_trace_test.py build/release/phalanx
"""

import collections
import json
import pathlib
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parents[2]
STAGES = 4
REQUESTS = 8
TOKENS = 24


def traced_run(binary, layout, directory):
    prompts = directory / "prompts.jsonl"
    prompts.write_text("".join(json.dumps([5 + i, 6, 7, 8]) + "\n" for i in range(REQUESTS)))
    subprocess.run([binary, "run", "--model", str(ROOT / "launcher/demo-model"), "--layout", layout,
                    "--workers", "mpirun", "--threads", "1", "--prompts-file", str(prompts),
                    "--max-tokens", str(TOKENS), "--ignore-eos", "--seed", "1", "--json",
                    "--step-trace", str(directory / "trace")],
                   check=True, stdout=subprocess.DEVNULL, timeout=120)
    ranks = {}
    for path in sorted((directory / "trace").iterdir()):
        ranks[path.name] = [json.loads(line) for line in path.read_text().splitlines()]
    return ranks


def faults(events, stages):
    """What is wrong with {(stage, step): {"begin": ns, "end": ns}}, first; None: nothing."""
    steps = sorted({step for _, step in events})
    if steps != list(range(1, len(steps) + 1)):
        return f"the steps are {steps}"
    for step in steps:
        for stage in range(stages):
            here = events.get((stage, step))
            if here is None or set(here) != {"begin", "end"} or here["end"] < here["begin"]:
                return f"stage {stage}, step {step}: {here}"
            if stage and here["begin"] < events[stage - 1, step]["end"]:
                return f"step {step} began on stage {stage} before stage {stage - 1} was done with it"
            if step > 1 and here["begin"] < events[stage, step - 1]["end"]:
                return f"stage {stage} began step {step} before it was done with the one before"
        out = step - stages
        if out >= 1 and events[0, step]["begin"] < events[stages - 1, out]["end"]:
            return f"step {step} began while {stages} others were out"
    return None


def busy_at_once(events):
    changes = []
    for times in events.values():
        changes += [(times["begin"], 1), (times["end"], -1)]
    busy = most = 0
    for _, change in sorted(changes):
        busy += change
        most = max(most, busy)
    return most


def main():
    binary = sys.argv[1]
    for layout, ranks_of_stage in ((f"pp={STAGES}", 1), ("pp=2,tp=2", 2)):
        stages = int(layout.split(",")[0].split("=")[1])
        with tempfile.TemporaryDirectory() as scratch:
            ranks = traced_run(binary, layout, pathlib.Path(scratch))
        assert len(ranks) == stages * ranks_of_stage, sorted(ranks)
        by_first_rank = collections.defaultdict(dict)
        for index, lines in enumerate(ranks.values()):
            stage = index // ranks_of_stage
            assert {line["stage"] for line in lines} == {stage}, (index, stage)
            order = [line["step"] for line in lines if line["event"] == "begin"]
            assert order == sorted(order), f"rank {index} took steps in the order {order}"
            assert len(order) >= TOKENS, order
            if index % ranks_of_stage:
                continue
            for line in lines:
                by_first_rank[stage, line["step"]][line["event"]] = line["unix_ns"]
        wrong = faults(by_first_rank, stages)
        assert wrong is None, f"{layout}: {wrong}"
        # The check can fail: two stages change places.
        swapped = {(stages - 1 - stage, step): times
                   for (stage, step), times in by_first_rank.items()}
        assert faults(swapped, stages) is not None
        most = busy_at_once(by_first_rank)
        assert most > 1, f"{layout}: no two stages ever worked at the same time"
        steps = len(by_first_rank) // stages
        print(f"{layout}: {steps} steps through {stages} stages in order, up to {most} at once: OK")


if __name__ == "__main__":
    main()
