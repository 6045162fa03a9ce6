"""Hosts on one machine: each a network, PID, mount and host-name namespace of its own, joined by a
bridge. Needs root.

What a host has of its own: its name, address, /tmp, /dev/shm and processes, so that ranks on two
hosts can talk over the network only. What they share: the file system but for those. The machine
that runs the test is one more host on the bridge (`Hosts.outside`), for clients.

mpirun reaches a host through `Hosts.agent`, a remote shell as rsh is: a TCP connection over the
bridge to the host's first process, which runs the command. Links are cut as cables are, without a
word to either side.
"""

import json
import os
import pathlib
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "testing"))

import namespaces  # noqa: E402

_PORT = 514
_DEADLINE = 30


def unavailable():
    """Why this machine can't have hosts, or nothing."""
    if os.geteuid() != 0:
        return "needs root: network namespaces"
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"needs the program {program}"
    name = f"phx{os.getpid()}t"
    made = subprocess.run(["ip", "link", "add", name, "type", "veth", "peer", "name", name + "p"],
                          capture_output=True, text=True, check=False)
    if made.returncode != 0:
        return "needs virtual network devices: " + made.stderr.strip()
    _ip("link", "del", name)
    trial = subprocess.run(["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "true"],
                           capture_output=True, text=True, check=False)
    return f"needs namespaces: {trial.stderr.strip()}" if trial.returncode != 0 else None


def _ip(*arguments, inside=None):
    command = ["ip", *arguments]
    if inside is not None:
        command = ["nsenter", "-t", str(inside), "-n", *command]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {result.stderr.strip()}")
    return result.stdout


def kill(pid):
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def _wait_for_end(pid, timeout):
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    poll.poll(max(timeout, 0) * 1000)
    os.close(handle)


class Host:
    def __init__(self, name, address, device):
        self.name = name
        self.address = address
        self.device = device  # its cable's end at the bridge
        self.holder = None
        self.pid = 0  # of its first process

    def alive(self):
        return self.pid != 0


class Hosts:
    """`with Hosts(["a", "b"]) as hosts: hosts.popen("a", [...])`.

    `shared`: directories under /tmp that every host shall see all the same.
    """

    def __init__(self, names, shared=()):
        self._names = list(names)
        self._shared = [pathlib.Path(path).resolve() for path in shared]
        self._scratch = tempfile.TemporaryDirectory(prefix="phalanx-hosts-")
        self.directory = pathlib.Path(self._scratch.name)  # seen by every host
        self.agent = str(self.directory / "agent")
        self.hosts = {}
        number = os.getpid() % 200 + 20
        self._subnet = f"10.213.{number}"
        self._bridge = f"phx{os.getpid()}"
        self.outside = f"{self._subnet}.1"  # the test's own address

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        _ip("link", "add", self._bridge, "type", "bridge")
        _ip("addr", "add", f"{self.outside}/24", "dev", self._bridge)
        _ip("link", "set", self._bridge, "up")
        try:
            for i, name in enumerate(self._names):
                self.hosts[name] = Host(name, f"{self._subnet}.{10 + i}", f"{self._bridge}.{i}")
            lines = ["127.0.0.1 localhost"]
            lines += [f"{host.address} {name}" for name, host in self.hosts.items()]
            (self.directory / "hosts").write_text("\n".join(lines) + "\n")
            agent = pathlib.Path(self.agent)
            agent.write_text(f"#!/bin/sh\nexec {sys.executable} {__file__} agent \"$@\"\n")
            agent.chmod(0o755)
            for host in self.hosts.values():
                self._boot(host)
        except BaseException:
            self.stop()
            raise

    def _boot(self, host):
        plan = {"name": host.name, "address": host.address,
                "hosts": str(self.directory / "hosts"),
                "own": str(self.directory / f"own-{host.name}"),
                "shared": [str(p) for p in [*self._shared, self.directory]]}
        os.makedirs(plan["own"], exist_ok=True)
        # Its end kills every process of the host.
        host.holder = subprocess.Popen(
            ["unshare", "--net", "--uts", "--mount", "--pid", "--fork", "--kill-child",
             sys.executable, __file__, "host", json.dumps(plan)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._expect(host, "namespaces")
        children = pathlib.Path(f"/proc/{host.holder.pid}/task/{host.holder.pid}/children")
        host.pid = int(children.read_text().split()[0])
        peer = f"{host.device}p"
        _ip("link", "add", host.device, "type", "veth", "peer", "name", peer)
        _ip("link", "set", peer, "netns", str(host.pid), "name", "eth0")
        _ip("link", "set", host.device, "master", self._bridge, "up")
        _ip("addr", "add", f"{host.address}/24", "dev", "eth0", inside=host.pid)
        _ip("link", "set", "lo", "up", inside=host.pid)
        _ip("link", "set", "eth0", "up", inside=host.pid)
        print("go", file=host.holder.stdin, flush=True)
        self._expect(host, "ready")

    @staticmethod
    def _expect(host, word):
        if not select.select([host.holder.stdout], [], [], _DEADLINE)[0]:
            raise RuntimeError(f"host {host.name} doesn't come up")
        line = host.holder.stdout.readline().strip()
        if line != word:
            raise RuntimeError(f"host {host.name} ended while it came up: {line}")

    def stop(self):
        for host in self.hosts.values():
            self.power_off(host.name)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True, check=False)
        self._scratch.cleanup()

    def inside(self, name, command):
        """The command line that runs `command` (a list) on the host, whatever its links do."""
        return ["nsenter", "-t", str(self.hosts[name].pid), "-n", "-u", "-m", "-p",
                f"--wd={os.getcwd()}", "--", *command]

    def exec(self, name, command, **options):
        options = {"capture_output": True, "text": True, "check": False, "timeout": 90, **options}
        return subprocess.run(self.inside(name, command), **options)

    def pids(self, name):
        """The host's processes but the first: {pid as the test sees it: command line}."""
        space = os.readlink(f"/proc/{self.hosts[name].pid}/ns/pid")
        out = {}
        for entry in pathlib.Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == self.hosts[name].pid:
                continue
            try:
                if os.readlink(entry / "ns/pid") != space:
                    continue
                words = (entry / "cmdline").read_bytes().split(b"\0")
                line = b" ".join(words).decode(errors="replace")
            except OSError:
                continue
            if line:  # not a zombie
                out[int(entry.name)] = line.strip()
        return out

    def wait_until_empty(self, name, timeout):
        """The processes that the host still has after at most `timeout` seconds: best none."""
        deadline = time.monotonic() + timeout
        while True:
            left = self.pids(name)
            if not left or time.monotonic() > deadline:
                return left
            for pid in list(left)[:1]:  # its end is an event; then look again
                _wait_for_end(pid, min(deadline - time.monotonic(), 1))

    def cut_link(self, name):
        """Pulls the host's cable. Nothing tells either side."""
        _ip("link", "set", self.hosts[name].device, "down")

    def restore_link(self, name):
        _ip("link", "set", self.hosts[name].device, "up")

    def cut_one_way(self, sender, receiver):
        """What `sender` sends to `receiver` is lost from now on; the other direction works."""
        # A hardware address that nobody has: the bridge floods the packets and all ignore them.
        _ip("neigh", "replace", self._address(receiver), "lladdr", "02:de:ad:00:00:01", "nud",
            "permanent", "dev", self._device(sender), inside=self._inside(sender))

    def restore_one_way(self, sender, receiver):
        _ip("neigh", "del", self._address(receiver), "dev", self._device(sender),
            inside=self._inside(sender))

    # None is the test's own machine.
    def _address(self, name):
        return self.outside if name is None else self.hosts[name].address

    def _device(self, name):
        return self._bridge if name is None else "eth0"

    def _inside(self, name):
        return None if name is None else self.hosts[name].pid

    def power_off(self, name):
        """Ends the host with all its processes and its link, at once."""
        host = self.hosts[name]
        if host.holder is None:
            return
        subprocess.run(["ip", "link", "del", host.device], capture_output=True, check=False)
        if host.holder.poll() is None:
            host.holder.kill()
        host.holder.wait()
        if host.pid:
            _wait_for_end(host.pid, _DEADLINE)
        host.holder.stdin.close()
        host.holder.stdout.close()
        host.holder, host.pid = None, 0

    def power_on(self, name):
        self._boot(self.hosts[name])


def _run_host(plan):
    """The first process of a host: sets its namespaces up, then runs what comes by TCP. Ends, and
    all of the host with it, when the test closes its stdin."""
    namespaces.become_host(plan)
    print("namespaces", flush=True)
    sys.stdin.readline()  # the network is there

    listener = socket.create_server((plan["address"], _PORT), backlog=64)
    # A command's process is waited for by its own thread; what it leaves behind ends up here.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    threading.Thread(target=_accept, args=(listener,), daemon=True).start()
    print("ready", flush=True)
    while True:
        # Children that nobody waits for: daemons' remains. Known ones are left to their threads.
        if select.select([sys.stdin], [], [], 0.2)[0] and not sys.stdin.readline():
            os._exit(0)
        for child in _children():
            if child not in _known:
                try:
                    os.waitpid(child, os.WNOHANG)
                except ChildProcessError:
                    pass


_known = set()


def _children():
    text = pathlib.Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    return [int(pid) for pid in text.split()]


def _accept(listener):
    while True:
        connection, _ = listener.accept()
        connection.set_inheritable(False)
        threading.Thread(target=_serve, args=(connection,), daemon=True).start()


def _serve(connection):
    with connection:
        command = b""
        while not command.endswith(b"\0"):
            chunk = connection.recv(65536)
            if not chunk:
                return
            command += chunk
        process = subprocess.Popen(["sh", "-c", command[:-1].decode()], stdin=subprocess.DEVNULL,
                                   stdout=connection, stderr=connection, start_new_session=True,
                                   cwd="/")
        _known.add(process.pid)
        code = process.wait()
        _known.discard(process.pid)
        # The last line is the code. What still holds the connection (a daemon) has had its say.
        try:
            connection.sendall(b"\n\0%d\n" % code)
            connection.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # nobody is there to hear it


def _run_agent(arguments):
    """agent HOST COMMAND ...: as rsh; the command's words are joined for the host's shell."""
    addresses = dict(reversed(line.split()) for line in
                     pathlib.Path("/etc/hosts").read_text().splitlines())
    host, words = arguments[0], arguments[1:]
    try:
        connection = socket.create_connection((addresses[host], _PORT), timeout=_DEADLINE)
    except (OSError, KeyError) as error:
        sys.exit(f"agent: {host}: {error}")
    connection.settimeout(None)
    connection.sendall(" ".join(words).encode() + b"\0")
    text = b""
    while True:
        chunk = connection.recv(65536)
        if not chunk:
            break
        text += chunk
    output, _, code = text.rpartition(b"\n\0")
    sys.stderr.buffer.write(output)
    sys.stderr.flush()
    sys.exit(int(code) & 255 if code else 1)


if __name__ == "__main__":
    if sys.argv[1] == "host":
        _run_host(json.loads(sys.argv[2]))
    else:
        _run_agent(sys.argv[2:])
