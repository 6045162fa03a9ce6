"""Hosts that are namespaces of this machine: what the tests of hosts and of Slurm share."""

import pathlib
import socket
import subprocess


def mount(*arguments):
    subprocess.run(["mount", *arguments], check=True)


def become_host(plan):
    """Gives this process, the first of new UTS, mount and PID namespaces, the name plan["name"], a
    /tmp and a /dev/shm of its own below plan["own"], and plan["hosts"] as its /etc/hosts. The
    directories plan["shared"] are seen by all hosts."""
    socket.sethostname(plan["name"])
    mount("--make-rprivate", "/")
    tmp = pathlib.Path(plan["own"]) / "tmp"
    tmp.mkdir(exist_ok=True)
    tmp.chmod(0o1777)
    # Those below /tmp go below the host's own /tmp.
    for path in plan["shared"]:
        if pathlib.Path(path).is_relative_to("/tmp"):
            inner = tmp / pathlib.Path(path).relative_to("/tmp")
            inner.mkdir(parents=True, exist_ok=True)
            mount("--bind", path, str(inner))
    mount("--bind", plan["hosts"], "/etc/hosts")
    mount("--rbind", str(tmp), "/tmp")
    mount("-t", "tmpfs", "tmpfs", "/dev/shm")
    mount("-t", "proc", "proc", "/proc")
