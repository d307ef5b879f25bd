"""Owns the network lab: two hosts and a router between them, and everything that can go wrong there.

    client ----- router (NAT, firewall) ----- server

Each of the three is a network namespace of this machine, joined by veth pairs. What is broken is broken at the
router or at the other host's plug, so the host that survives keeps a healthy interface and must find out by itself.

    with Lab() as lab:
        server = lab.popen("server", ["python3", "server.py"])
        client = lab.popen("client", ["python3", "client.py", lab.address("server")])
        ...
        lab.pull("server")              # nobody tells the client
        ...
        lab.restore()                   # ends every fault

The namespaces have no names: a namespace lives as long as a descriptor or a process refers to it, so two labs can't
collide, and a lab whose owner was killed is gone with it. Only processes can be left over;
`python -m longconn.testing.network clean` ends them.

Needs `ip`, `nft` (and `tc` for `rate`), and root or a kernel that lets everybody make user namespaces; where it is
neither, `reason_unavailable()` says why. `python -m longconn.testing.network check` tries every fault.
The file runs by itself, too: standard library only.
"""

from __future__ import annotations

import argparse
import atexit
import contextlib
import ctypes
import errno
import fcntl
import functools
import os
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

__all__ = ["HOSTS", "Lab", "LabError", "clean", "enter_unprivileged", "is_privileged", "reason_unavailable"]

HOSTS = ("client", "server")
# 10.88/16 is an arbitrary corner of the private range; nothing outside the namespaces ever sees it.
SUBNET = "10.88"
# Marks every process of a lab with its owner, so that `clean` finds those whose owner was killed.
MARK = "LONGCONN_LAB"

CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1  # <linux/sockios.h>, <linux/if.h>
CAP_NET_ADMIN, CAP_SYS_ADMIN = 12, 21  # <linux/capability.h>

_libc = ctypes.CDLL(None, use_errno=True)


class LabError(RuntimeError):
    """A command that the lab needs has failed, or a tool is missing."""


class Lab:
    """Two hosts, `client` and `server`, and a router between them.

    Args:
        nat: The client sits behind the router: it is masqueraded, its connections are followed, and what belongs to
            no connection that the router knows is dropped in silence.
        polite: The router says "unreachable" (ICMP) when it can't deliver, as routers do in a house or an office.
            By default it is mute, as the far side of the internet is.
        more: Names of further hosts, each with a cable of its own; at most 15 characters each. A NAT isn't for these.
    """

    def __init__(self, *, nat: bool = False, polite: bool = False, more: Sequence[str] = ()) -> None:
        if nat and more:
            raise LabError("Lab(nat=True) has one client; more hosts need nat=False")
        self.nat = nat
        self.polite = polite
        self.hosts = (*HOSTS, *more)
        self._namespaces: dict[str, int] = {}
        self._rules: dict[str, dict[str, str]] = {host: {} for host in self.hosts}
        self._processes: list[subprocess.Popen[Any]] = []
        self._frozen: set[int] = set()
        self._owner = os.getpid()

    # ---- life

    def __enter__(self) -> Lab:
        atexit.register(self.close)
        try:
            self._namespaces["router"] = _new_namespace()
            self._run("router", "ip", "link", "set", "lo", "up")
            for host in self.hosts:
                self._make_host(host)
            with self.inside("router"):
                Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            self._run("router", "nft", "-f", "-", stdin=self._ruleset())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends what runs in the lab, and the lab. Closing twice is fine."""
        atexit.unregister(self.close)
        if not self._namespaces or os.getpid() != self._owner:  # a forked child must not close its parent's lab
            return
        for process in self._processes:
            process.kill()
        for pid in self.pids():  # what they have started in turn
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for process in self._processes:
            process.wait()
            for pipe in (process.stdin, process.stdout, process.stderr):
                if pipe:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        # Cables first: a socket that still has data to deliver keeps its namespace for a while, and now it is alone.
        for host in self.hosts:
            with contextlib.suppress(LabError):
                self._run("router", "ip", "link", "delete", host)
        while self._namespaces:
            os.close(self._namespaces.popitem()[1])

    def _make_host(self, host: str) -> None:
        """A host and its cable: two commands, batches, as each costs a few milliseconds."""
        self._namespaces[host] = _new_namespace()
        # The router's plugs are named after the host at the other end.
        wiring = f"link add {host} type veth peer name eth0 netns {self.path(host)}\n"
        wiring += f"address add {self.gateway(host)}/24 dev {host}\nlink set {host} up\n"
        self._run("router", "ip", "-batch", "-", stdin=wiring)
        wiring = f"link set lo up\naddress add {self.address(host)}/24 dev eth0\nlink set eth0 up\n"
        wiring += f"route add default via {self.gateway(host)}\n"
        self._run(host, "ip", "-batch", "-", stdin=wiring)

    def _ruleset(self) -> str:
        """The router's rules. Faults live in the chains `from-...`, ahead of connection tracking (priority -200)."""
        rules = "".join(f"chain from-{host} {{ }}\n" for host in self.hosts)
        rules += "chain faults { type filter hook prerouting priority -310;\n"
        rules += "".join(f'iifname "{host}" jump from-{host}\n' for host in self.hosts) + "}\n"
        if not self.polite:
            rules += """
                chain mute { type filter hook output priority 0;
                    icmp type { destination-unreachable, time-exceeded } drop
                }"""
        if self.nat:
            # Only a SYN opens a connection: with the kernel's default (nf_conntrack_tcp_loose) a router that forgot
            # would pick up a connection in its middle. And what comes for the router's own address is dropped:
            # a kernel without such a socket would answer RST, which many middleboxes don't.
            rules += """
                chain firewall { type filter hook forward priority 0; policy drop;
                    ct state established,related accept
                    iifname "client" tcp flags & (syn|ack|rst|fin) == syn ct state new accept
                    iifname "client" meta l4proto { udp, icmp } ct state new accept
                }
                chain own { type filter hook input priority 0;
                    iifname "server" meta l4proto tcp drop
                }
                chain disguise { type nat hook postrouting priority 100;
                    oifname "server" masquerade
                }"""
        return f"table inet lab {{\n{rules}\n}}"

    # ---- places and processes

    def address(self, host: str) -> str:
        """The IPv4 address of a host."""
        return f"{SUBNET}.{self.hosts.index(host) + 1}.2"

    def gateway(self, host: str) -> str:
        """The router's IPv4 address on the host's side."""
        return f"{SUBNET}.{self.hosts.index(host) + 1}.1"

    def path(self, place: str) -> str:
        """The namespace as a file, for `nsenter --net=PATH` while the lab lives."""
        return f"/proc/{self._owner}/fd/{self._namespaces[place]}"

    def inside(self, place: str) -> _Inside:
        """This thread, and what it starts in the block, is in `client`, `server` or `router`.

        A socket stays where it was made, so that one test process can hold both ends of a connection.
        """
        return _Inside(self._namespaces[place])

    def popen(self, host: str, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Starts a command in a host. It ends with the lab at the latest."""
        environment = {**(options.pop("env", None) or os.environ), MARK: _identity(self._owner)}
        with self.inside(host):
            process = subprocess.Popen(argv, env=environment, **options)
        self._processes.append(process)
        return process

    def pids(self, *places: str) -> list[int]:
        """Every process in the lab, or in these places of it, but not the one that owns it."""
        ours = {os.fstat(self._namespaces[place]).st_ino for place in places or self._namespaces}
        return [pid for pid in _all_pids() if pid != self._owner and _namespace_of(pid) in ours]

    def _run(self, place: str, *argv: str, stdin: str = "") -> str:
        with self.inside(place):
            return _run(*argv, stdin=stdin)

    # ---- faults

    def pull(self, host: str) -> None:
        """The cable of `host` comes out: that host loses its carrier, the other one sees nothing."""
        self._set_link(host, up=False)

    def plug(self, host: str) -> None:
        """The cable of `host` goes in again."""
        self._set_link(host, up=True)

    def _set_link(self, host: str, *, up: bool) -> None:
        """By ioctl and not by `ip`: a fault takes effect at the moment that is measured, not milliseconds later."""
        with self.inside("router"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
            request = struct.pack("16sh22x", host.encode(), 0)
            _, flags = struct.unpack("16sh22x", fcntl.ioctl(control, SIOCGIFFLAGS, request))
            flags = flags | IFF_UP if up else flags & ~IFF_UP
            fcntl.ioctl(control, SIOCSIFFLAGS, struct.pack("16sh22x", host.encode(), flags))

    def power_off(self, host: str) -> None:
        """Power cut: the cable goes first, so that neither FIN nor RST gets out, and then all that the host was."""
        self.pull(host)
        for pid in self.pids(host):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._run("router", "ip", "link", "delete", host)
        os.close(self._namespaces.pop(host))

    def power_on(self, host: str) -> None:
        """Back after `power_off`: the same address and no memory, so packets of old connections are met with RST."""
        self._make_host(host)

    def drop(self, *senders: str) -> None:
        """What these hosts send is lost: `drop("client")` cuts one direction, `drop()` all."""
        self._set_rule("drop", "drop", senders)

    def undrop(self, *senders: str) -> None:
        """Ends `drop` for these hosts, by default for all."""
        self._set_rule("drop", None, senders)

    def drop_larger(self, size: int, *senders: str) -> None:
        """Packets of these hosts (by default of both) with more bytes than that, IP header included, are lost, as in
        a path whose MTU nobody told; 0 ends it. A bare ACK has 72 bytes at most."""
        for sender in self._senders(senders):
            # A packet that is still several segments in one, as they cross a veth, would be lost for its sum.
            segments = 1 if size else 65535
            self._run(sender, *f"ip link set dev eth0 gso_max_segs {segments}".split())
        self._set_rule("larger", f"ip length > {size} drop" if size else None, senders)

    def loss(self, percent: float, *senders: str) -> None:
        """Each packet of these hosts (by default of all) is lost with this probability; 0 ends it."""
        rule = f"numgen random mod 100000 < {round(percent * 1000)} drop" if percent else None
        if percent == 100:
            rule = "drop"  # nft refuses a comparison that is always true
        self._set_rule("loss", rule, senders)

    def reset(self, *senders: str) -> None:
        """A box on the way ends connections: TCP packets of these hosts (by default of all) are lost, and each is
        answered with RST in the other host's name."""
        self._set_rule("reset", "meta l4proto tcp reject with tcp reset", senders)

    def rate(self, kilobits: int, *senders: str, queue: float = 0.05) -> None:
        """What client and server (by default both) send each other passes at so many kilobits a second; 0 ends it.

        The router's queue holds what it takes `queue` seconds to send; what finds it full is lost.
        """
        for sender in senders or HOSTS:
            plug = HOSTS[1 - HOSTS.index(sender)]  # the queue is where the router sends it on
            with contextlib.suppress(LabError):  # there may be none yet
                self._run("router", "tc", "qdisc", "delete", "dev", plug, "root")
            if kilobits:
                bucket = f"tbf rate {kilobits}kbit burst 16k latency {queue * 1000:.0f}ms"
                self._run("router", "tc", "qdisc", "add", "dev", plug, "root", *bucket.split())

    def forget(self) -> None:
        """The NAT loses its table: connections that stand match nothing any more, and die in silence."""
        if not self.nat:
            raise LabError("forget() needs Lab(nat=True)")
        with self.inside("router"):
            _flush_connection_tracking()

    def forget_after(self, seconds: int) -> None:
        """From now on the NAT forgets each connection of which it has seen nothing for so long; whole seconds."""
        if not self.nat:
            raise LabError("forget_after() needs Lab(nat=True)")
        with self.inside("router"):
            Path("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established").write_text(str(seconds))

    def freeze(self, process: subprocess.Popen[Any] | int) -> None:
        """Stops a child process (SIGSTOP), at once and whole; its kernel goes on answering for it."""
        pid = process if isinstance(process, int) else process.pid
        os.kill(pid, signal.SIGSTOP)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)
        self._frozen.add(pid)

    def thaw(self, process: subprocess.Popen[Any] | int) -> None:
        """Lets a frozen process run again."""
        pid = process if isinstance(process, int) else process.pid
        self._frozen.discard(pid)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)

    def restore(self) -> None:
        """Ends every fault: power on, cables in, rules gone, processes running. What a NAT forgot stays forgotten."""
        for host in self.hosts:
            if host not in self._namespaces:
                self.power_on(host)
            self.plug(host)
            if "larger" in self._rules[host]:
                self.drop_larger(0, host)
            self._rules[host].clear()
        self._write_rules()
        self.rate(0)
        for pid in list(self._frozen):
            self.thaw(pid)

    def _set_rule(self, name: str, rule: str | None, senders: Sequence[str]) -> None:
        for sender in self._senders(senders):
            self._rules[sender].pop(name, None)
            if rule:
                self._rules[sender][name] = rule
        self._write_rules()

    def _senders(self, senders: Sequence[str]) -> Sequence[str]:
        if unknown := set(senders) - set(self.hosts):
            raise ValueError(f"no such host: {', '.join(sorted(unknown))}")
        return senders or self.hosts

    def _write_rules(self) -> None:
        """Both directions in one transaction, so that a cut is a cut at one moment."""
        text = ""
        for host, rules in self._rules.items():
            text += f"flush chain inet lab from-{host}\n"
            text += "".join(f"add rule inet lab from-{host} {rule}\n" for rule in rules.values())
        self._run("router", "nft", "-f", "-", stdin=text)


# ---- may we?


@functools.cache
def reason_unavailable() -> str | None:
    """Why no lab can be made here, in words; None if one can. Found by trying it in another process."""
    if sys.platform != "linux":
        return f"network namespaces are Linux's own; this is {sys.platform}"
    for tool, package in {"ip": "iproute2", "nft": "nftables"}.items():
        if not _tool(tool):
            return f"`{tool}` isn't installed (package {package})"
    done = subprocess.run([sys.executable, "-I", "-S", __file__, "try"], capture_output=True, text=True)
    if done.returncode:
        return (done.stdout or done.stderr).strip().partition("\n")[0]
    return None


def enter_unprivileged(*, even_root: bool = False) -> None:
    """Makes this process root of a user namespace of its own, unless it can already make labs.

    From then on the process, and what it starts, is in a network namespace of its own with nothing but a loopback.
    Call it early: the kernel lets only a process with a single thread do it, and there is no way back.

    Raises:
        LabError: The kernel doesn't let us; the message says what it said.
    """
    if is_privileged() and not even_root:
        return
    user, group = os.geteuid(), os.getegid()
    # Both in one call: this namespace has to belong to the new user namespace, or setns() back into it is refused.
    if _libc.unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise LabError(_why_refused(ctypes.get_errno()))
    try:
        Path("/proc/self/setgroups").write_text("deny")  # user_namespaces(7): else gid_map is refused
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
        _run("ip", "link", "set", "lo", "up")
    except (OSError, LabError) as error:
        raise LabError(f"{_why_refused(errno.EPERM)} ({error})") from None


def is_privileged() -> bool:
    """Whether this process can make labs as it is."""
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    return all(effective >> capability & 1 for capability in (CAP_NET_ADMIN, CAP_SYS_ADMIN))


def _why_refused(code: int) -> str:
    if code == errno.EINVAL:
        return "not root, and with more than one thread it is too late for a user namespace"
    # Where distributions keep the switch; the last is the kernel's own.
    for switch, closed in {
        "kernel/unprivileged_userns_clone": "0",
        "kernel/apparmor_restrict_unprivileged_userns": "1",
        "user/max_user_namespaces": "0",
    }.items():
        with contextlib.suppress(OSError):
            if Path("/proc/sys", switch).read_text().strip() == closed:
                return f"not root, and user namespaces are closed to others here ({switch.replace('/', '.')}={closed})"
    return f"not root, and the kernel makes no user namespace for others ({os.strerror(code)})"


# ---- plumbing


class _Inside:
    """The calling thread in another network namespace, until the block ends."""

    def __init__(self, namespace: int) -> None:
        self._there = namespace

    def __enter__(self) -> None:
        self._home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _check(_libc.setns(self._there, CLONE_NEWNET), "setns")
        except LabError:
            os.close(self._home)
            raise

    def __exit__(self, *_: object) -> None:
        try:
            _check(_libc.setns(self._home, CLONE_NEWNET), "setns")
        finally:
            os.close(self._home)


def _new_namespace() -> int:
    """A new network namespace, as a descriptor. unshare() and setns() move only the calling thread."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _check(_libc.unshare(CLONE_NEWNET), "a new network namespace")
        new = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        _check(_libc.setns(home, CLONE_NEWNET), "setns")
        return new
    finally:
        os.close(home)


def _check(result: int, what: str) -> None:
    if result:
        raise LabError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _tool(name: str) -> str | None:
    # The PATH of somebody who isn't root leaves out the places where Debian keeps these.
    return shutil.which(name, path=os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin")


def _run(name: str, *arguments: str, stdin: str = "") -> str:
    tool = _tool(name)
    if tool is None:
        raise LabError(f"`{name}` isn't installed")
    done = subprocess.run([tool, *arguments], input=stdin, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().partition("\n")[0]
        raise LabError(f"{shlex.join([name, *arguments])}: {said}")
    return done.stdout


def _flush_connection_tracking() -> None:
    """`conntrack -F` without that tool: one nfnetlink message (IPCTNL_MSG_CT_DELETE without a tuple)."""
    request, acknowledge = 1, 4  # NLM_F_REQUEST, NLM_F_ACK
    netlink_netfilter, conntrack_delete = 12, 1 << 8 | 2
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netlink_netfilter) as netlink:
        body = struct.pack("=BBH", socket.AF_INET, 0, 0)  # struct nfgenmsg
        netlink.send(struct.pack("=IHHII", 16 + len(body), conntrack_delete, request | acknowledge, 0, 0) + body)
        code = -struct.unpack_from("=i", netlink.recv(4096), 16)[0]  # struct nlmsgerr
        if code:
            raise LabError(f"the NAT's table can't be flushed: {os.strerror(code)}")


def _identity(pid: int) -> str:
    """A process, unmistakably: its number and when it started (field 22 of proc(5)'s stat), as numbers are reused."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return f"{pid} gone"
    return f"{pid} {stat.rpartition(')')[2].split()[19]}"


def _all_pids() -> Iterator[int]:
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def _namespace_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:  # gone, or somebody else's
        return None


def clean() -> list[int]:
    """Ends processes of labs whose owner was killed; their namespaces go with them. Returns the processes' numbers."""
    ended = []
    for pid in _all_pids():
        with contextlib.suppress(OSError):
            for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                name, _, owner = entry.decode(errors="replace").partition("=")
                if name == MARK and owner != _identity(int(owner.split()[0])):
                    os.kill(pid, signal.SIGKILL)
                    ended.append(pid)
    return ended


# ---- check: does each fault do what it says, on this machine?


class Pair:
    """A connection from the client to the server, both ends in this process."""

    def __init__(self, lab: Lab) -> None:
        with lab.inside("server"), socket.create_server((lab.address("server"), 0)) as listener:
            address = listener.getsockname()
            with lab.inside("client"):
                self.client = socket.create_connection(address, timeout=10)
            self.server, _ = listener.accept()
        for end in (self.client, self.server):
            end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()
        self.server.close()

    def arrives(self, sender: str, within: float = 0.7) -> bool:
        """Sends one byte: does it come out at the other end? Lost ones are sent again by TCP and count later."""
        source, sink = (self.client, self.server) if sender == "client" else (self.server, self.client)
        source.sendall(b"x")
        sink.settimeout(within)
        try:
            return sink.recv(1) == b"x"
        except TimeoutError:
            return False

    def arriving(self) -> set[str]:
        """The hosts whose bytes arrive."""
        return {host for host in HOSTS if self.arrives(host)}


def _has_carrier(lab: Lab, host: str) -> bool:
    with lab.inside(host):
        return "NO-CARRIER" not in _run("ip", "link", "show", "eth0")


def try_cable(lab: Lab, pair: Pair) -> tuple[bool, str]:
    lab.pull("server")
    carriers = {host for host in HOSTS if _has_carrier(lab, host)}
    pulled = pair.arriving()
    lab.plug("server")
    plugged = {host for host in HOSTS if pair.arrives(host, within=10)}
    seen = f"carrier at {_names(carriers)}; pulled: {_names(pulled)} heard; plugged: {_names(plugged)} heard"
    return (carriers, pulled, plugged) == ({"client"}, set(), set(HOSTS)), seen


def try_drop_client(lab: Lab, pair: Pair) -> tuple[bool, str]:
    return _try_drop(lab, pair, "client")


def try_drop_server(lab: Lab, pair: Pair) -> tuple[bool, str]:
    return _try_drop(lab, pair, "server")


def try_drop_both(lab: Lab, pair: Pair) -> tuple[bool, str]:
    return _try_drop(lab, pair, *HOSTS)


def _try_drop(lab: Lab, pair: Pair, *senders: str) -> tuple[bool, str]:
    lab.drop(*senders)
    dropped = pair.arriving()  # what the other host sends arrives: only its acknowledgements are lost
    lab.restore()
    after = {host for host in HOSTS if pair.arrives(host, within=10)}
    seen = f"dropped: {_names(dropped)} heard; restored: {_names(after)} heard"
    return (dropped, after) == (set(HOSTS) - set(senders), set(HOSTS)), seen


def try_drop_larger(lab: Lab, pair: Pair) -> tuple[bool, str]:
    lab.drop_larger(80, "client")
    small = pair.arriving()
    pair.client.sendall(bytes(100))
    pair.server.settimeout(0.7)
    try:
        large = bool(pair.server.recv(100))
    except TimeoutError:
        large = False
    lab.drop_larger(0)
    pair.server.settimeout(10)
    after = bool(pair.server.recv(100))
    return (small, large, after) == (
        set(HOSTS),
        False,
        True,
    ), f"{_names(small)} heard; 100 bytes: {large}; after: {after}"


def try_reset(lab: Lab, pair: Pair) -> tuple[bool, str]:
    """Of the client only: the server isn't told, until it sends."""
    lab.reset("client")
    pair.client.sendall(b"x")
    told = _is_told(pair.client)
    lab.restore()
    server_before = _is_told(pair.server, within=0.3)
    pair.server.sendall(b"x")
    server_after = _is_told(pair.server)
    seen = f"client: {told}; server: {server_before}, and once it sends: {server_after}"
    return (told, server_before, server_after) == ("ConnectionResetError", "TimeoutError", "ConnectionResetError"), seen


def _is_told(end: socket.socket, within: float = 10) -> str:
    end.settimeout(within)
    try:
        return repr(end.recv(1))
    except OSError as error:
        return type(error).__name__


def try_loss(lab: Lab, _: Pair) -> tuple[bool, str]:
    """By datagrams, which nobody sends again."""
    lab.loss(30, "client")
    with lab.inside("server"):
        sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sink.bind((lab.address("server"), 0))
    with lab.inside("client"):
        source = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sink, source:
        arrived = 0
        for _number in range(1000):
            source.sendto(b"x", sink.getsockname())
            with contextlib.suppress(BlockingIOError):  # taken at once, or the sink's buffer would lose some too
                arrived += len(sink.recv(1, socket.MSG_DONTWAIT))
        lab.loss(0)
        source.sendto(b"", sink.getsockname())
        sink.settimeout(10)
        while sink.recv(1):
            arrived += 1
    # Six standard deviations of a binomial of 1000 at 0.3 are 87.
    return abs(arrived - 700) < 87, f"{arrived} of 1000 arrived at 30 % loss"


def try_rate(lab: Lab, pair: Pair) -> tuple[bool, str]:
    lab.rate(800, "server")
    pair.client.settimeout(20)
    size, start = 100_000, time.monotonic()
    pair.server.settimeout(20)
    pair.server.sendall(bytes(size))
    while size:
        size -= len(pair.client.recv(size))
    took = time.monotonic() - start
    return 0.6 < took < 3, f"100 kB took {took:.1f} s at 800 kbit/s"


def try_power(lab: Lab, pair: Pair) -> tuple[bool, str]:
    """The pair's server end is in this process, which outlives the host: its socket is alone in its namespace."""
    lab.power_off("server")
    silent = not pair.arrives("server") and not pair.arrives("client")
    lab.power_on("server")
    try:
        pair.client.settimeout(10)
        then = repr(pair.client.recv(1))
    except OSError as error:
        then = type(error).__name__
    with Pair(lab) as new:
        fresh = new.arriving()
    seen = f"off: silent={silent}; on again: {then}, and a new connection: {_names(fresh)} heard"
    return (silent, then, fresh) == (True, "ConnectionResetError", set(HOSTS)), seen


def try_forget(lab: Lab, pair: Pair) -> tuple[bool, str]:
    before = pair.arriving()
    seen_from = pair.server.getpeername()[0]
    lab.forget()
    after = pair.arriving()
    with Pair(lab) as new:
        fresh = new.arriving()
    seen = f"the server sees {seen_from}; before: {_names(before)} heard; forgotten: {_names(after)} heard"
    return (seen_from, before, after, fresh) == (lab.gateway("server"), set(HOSTS), set(), set(HOSTS)), seen


try_forget.nat = True  # type: ignore[attr-defined]


def try_freeze(lab: Lab, _: Pair) -> tuple[bool, str]:
    echo = (
        "import socket, sys; listener = socket.create_server((sys.argv[1], 0))\n"
        "print(listener.getsockname()[1], flush=True); peer, _ = listener.accept()\n"
        "while data := peer.recv(100): peer.sendall(data)"
    )
    argv = [sys.executable, "-I", "-S", "-c", echo, lab.address("server")]
    process = lab.popen("server", argv, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    with lab.inside("client"):
        sock = socket.create_connection((lab.address("server"), int(process.stdout.readline())), timeout=10)
    with sock:
        lab.freeze(process)
        sock.sendall(b"hello")
        sock.settimeout(0.7)
        try:
            silent = not sock.recv(100)
        except TimeoutError:
            silent = True
        # tcpi_unacked is at 24: nothing is outstanding, so the kernel of the frozen process has answered for it.
        (unacknowledged,) = struct.unpack_from("=I", sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 104), 24)
        lab.thaw(process)
        sock.settimeout(10)
        answer = sock.recv(100)
    seen = f"frozen: silent={silent}, acknowledged={not unacknowledged}; thawed: {answer!r}"
    return (silent, unacknowledged, answer) == (True, 0, b"hello"), seen


TRIALS: dict[str, Callable[[Lab, Pair], tuple[bool, str]]] = {
    "cable pulled and plugged": try_cable,
    "what the client sends is dropped": try_drop_client,
    "what the server sends is dropped": try_drop_server,
    "both directions dropped": try_drop_both,
    "what is large is dropped": try_drop_larger,
    "resets by a box on the way": try_reset,
    "loss": try_loss,
    "rate": try_rate,
    "power cut, and on again": try_power,
    "the NAT forgets": try_forget,
    "freeze and thaw": try_freeze,
}


def _names(hosts: set[str]) -> str:
    return " and ".join(sorted(hosts)) or "nobody"


def _check_all() -> int:
    failed = 0
    for name, trial in TRIALS.items():
        try:
            with Lab(nat=hasattr(trial, "nat")) as lab, Pair(lab) as pair:
                good, seen = trial(lab, pair)
        except (LabError, OSError) as error:
            good, seen = False, f"{type(error).__name__}: {error}"
        failed += not good
        print(f"{'works' if good else 'FAILS'}  {name:34}{seen}", flush=True)
    return failed


def main() -> int:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    parser = argparse.ArgumentParser(description="A network lab of namespaces.")
    parser.add_argument("what", choices=("check", "clean", "try"))
    parser.add_argument("--unprivileged", action="store_true", help="in a user namespace, even if we are root")
    arguments = parser.parse_args()
    if arguments.what == "clean":
        print(f"ended: {clean() or 'nothing was left'}")
        return 0
    try:
        enter_unprivileged(even_root=arguments.unprivileged)
        if arguments.what == "check":
            return min(_check_all(), 1)
        with Lab(nat=True):
            return 0
    except (LabError, OSError) as error:
        print(error)
        return 1


if __name__ == "__main__":
    sys.exit(main())
