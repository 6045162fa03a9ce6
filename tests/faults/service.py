"""A service whose ranks can be made to fail, with what the tests need to know of it."""

import dataclasses
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "e2e"))

import harness  # noqa: E402

# Seconds in which a fault is to be found, stated in README.md. A stopped rank: after the last
# heartbeat, which may be one interval old.
DEATH_BOUND = 1.0
HEARTBEAT_TIMEOUT = 2.0
HANG_TIMEOUT = 10.0
SLACK = 1.0  # of a machine with more threads to run than cores
GONE_BOUND = 10.0  # until nothing of a dead group or service is left

_with_faults = None
_flags = None


def use(directory):
    """Names the folder of the two binaries."""
    global _with_faults
    directory = pathlib.Path(directory).resolve()
    harness._binary = directory / "phalanx"
    _with_faults = directory / "phalanx_with_faults"
    for binary in (harness._binary, _with_faults):
        if not binary.exists():
            sys.exit(f"{binary} does not exist; build it or name the folder with --build")


def known_flags(*flags):
    """Those of the pairs (flag, value) that `serve` knows, as arguments."""
    global _flags
    if _flags is None:
        _flags = harness.run("serve", "--help").stdout.decode()
    return [word for flag, value in flags if flag in _flags for word in (flag, str(value))]


def moe_model():
    """A mixture of experts with random weights and the demo model's tokenizer."""
    directory = harness.scratch() / "moe"
    config = """{"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
      "attention_bias": false, "bos_token_id": 0, "decoder_sparse_step": 1, "eos_token_id": 1,
      "head_dim": 16, "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128,
      "max_position_embeddings": 2048, "mlp_only_layers": [], "moe_intermediate_size": 64,
      "norm_topk_prob": true, "num_attention_heads": 8, "num_experts": 8, "num_experts_per_tok": 2,
      "num_hidden_layers": 4, "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_scaling": null,
      "rope_theta": 1000000.0, "sliding_window": null, "tie_word_embeddings": false,
      "torch_dtype": "bfloat16", "use_sliding_window": false, "vocab_size": 1024}"""
    subprocess.run([_with_faults, "write-checkpoint", directory, config, "1"], check=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(harness.DEMO_MODEL / name, directory)
    return directory


@dataclasses.dataclass
class Fired:
    """A fault that a rank carried out, by its own account."""
    replica: int
    rank: int
    epoch: int
    pid: int
    step: int
    collective: int
    where: str
    seconds: float  # time.monotonic()
    fault: str


def is_alive(pid):
    """Whether it runs or is stopped; a zombie does not."""
    try:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Service(harness.Process):
    """`phalanx_with_faults serve` on a free port."""

    def __init__(self, layout, *flags, model=None, faults="", wait=True, binary=None,
                 heartbeat=HEARTBEAT_TIMEOUT, hang=HANG_TIMEOUT):
        directory = harness.scratch()
        self.layout = layout
        self.endpoint_file = directory / "endpoint"
        self.fault_file = directory / "faults"
        self.fault_file.write_text(faults)
        self.times = []  # of the lines of stderr
        self._faults_given = 0
        command = [str(binary or _with_faults), "serve", "--model",
                   str(model or harness.DEMO_MODEL), "--layout", layout, "--threads", "1",
                   "--listen", "127.0.0.1:0", "--endpoint-file", str(self.endpoint_file),
                   *known_flags(("--heartbeat-timeout", heartbeat), ("--hang-timeout", hang)),
                   *flags]
        super().__init__(command, env={**os.environ, "PHALANX_FAULT": f"@{self.fault_file}"})
        self.endpoint = self.wait_until_served(self.endpoint_file, wait)

    def _read(self, stream, lines):
        for line in stream:
            with self._changed:
                if lines is self.lines:
                    self.times.append(time.monotonic())
                lines.append(line.rstrip("\n"))
                self._changed.notify_all()
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def mark(self):
        """The place in the log that later calls take up from."""
        with self._changed:
            return len(self.lines)

    def wait_for(self, pattern, since=0, timeout=harness.DEADLINE):
        """(match, time) of the first line from place `since` on that holds the pattern."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                for line, seconds in zip(self.lines[since:], self.times[since:]):
                    match = re.search(pattern, line)
                    if match:
                        return match, seconds
                left = deadline - time.monotonic()
                if left <= 0 or self._ended == 2:
                    raise AssertionError(f"no line with {pattern!r} in:\n" +
                                         "\n".join(self.lines[since:]))
                self._changed.wait(left)

    def arm(self, *faults):
        """Gives the ranks these faults in place of those before; each gets an id of its own."""
        lines = []
        for fault in faults:
            self._faults_given += 1
            lines.append(f"{fault},id={self._faults_given}")
        temporary = self.fault_file.with_suffix(".tmp")
        temporary.write_text("".join(line + "\n" for line in lines))
        temporary.rename(self.fault_file)
        return lines

    def fired(self):
        """All faults carried out so far."""
        path = pathlib.Path(f"{self.fault_file}.fired")
        if not path.exists():
            return []
        out = []
        for line in path.read_text().splitlines():
            fields = dict(pair.split("=", 1) for pair in line.split(" "))
            out.append(Fired(*(int(fields[name]) for name in ("replica", "rank", "epoch", "pid",
                                                              "step", "collective")),
                             fields["where"], float(fields["seconds"]), fields["fault"]))
        return out

    def processes(self):
        """Every live process that was started by this service or by one of those, however far
        down, and that carries the binary's or mpirun's name. {pid: command}"""
        mark = f"PHALANX_FAULT=@{self.fault_file}".encode()
        found = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.pid:
                continue
            try:
                if mark not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                command = (entry / "cmdline").read_bytes().split(b"\0")
            except (OSError, ProcessLookupError):
                continue
            if is_alive(int(entry.name)):
                found[int(entry.name)] = " ".join(w.decode() for w in command[:3])
        return found

    def mark_after(self, pattern, since):
        """The place after the first line from place `since` on that holds the pattern."""
        self.wait_for(pattern, since)
        with self._changed:
            return next(i for i in range(since, len(self.lines))
                        if re.search(pattern, self.lines[i])) + 1

    def mpirun_pids(self):
        return [pid for pid, command in self.processes().items() if "mpirun" in command]

    def kill_everything(self):
        """What a failed test leaves behind."""
        for pid in self.processes():
            send(pid, signal.SIGKILL)

    def stop(self):
        # The server first: it would only replace what it lost.
        if self.popen.poll() is None:
            self.popen.kill()
        self.kill_everything()
        super().stop()


def send(pid, number):
    """Signals a process that may have ended meanwhile."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def wait_until_gone(pids, timeout=GONE_BOUND):
    """The pids that are still there at the deadline."""
    deadline = time.monotonic() + timeout
    return [pid for pid in pids if is_alive(pid) and not harness.wait_for_exit_of(
        pid, max(0.0, deadline - time.monotonic())) and is_alive(pid)]


def footprint(pid):
    """(resident bytes, open descriptors) of a process."""
    status = pathlib.Path(f"/proc/{pid}/status").read_text()
    resident = int(re.search(r"VmRSS:\s+(\d+) kB", status).group(1)) * 1024
    return resident, len(os.listdir(f"/proc/{pid}/fd"))
