"""TLS: who is trusted and who isn't, what is said about it, and that nothing else changes. CAs are made by trustme."""

from __future__ import annotations

import datetime
import logging
import os
import random
import re
import select
import shlex
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import longconn
import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from longconn import TLS, Backoff, Cause, ConnectFailed, Heartbeat, LongConnection, LongServer
from longconn.testing import FaultProxy
from peers import PATIENCE, SLACK, let_go, listening, wait_until
from plain_peer import PlainPeer

SOON = Backoff(first=0.01, cap=0.05)
DAY = datetime.timedelta(days=1)
NOW = datetime.datetime.now(datetime.UTC)
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def other_authority() -> trustme.CA:
    return trustme.CA()


def pem(leaf: trustme.LeafCert) -> dict[str, bytes]:
    return {
        "certificate": b"".join(each.bytes() for each in leaf.cert_chain_pems),
        "key": leaf.private_key_pem.bytes(),
    }


@pytest.fixture(scope="module")
def ours(authority: trustme.CA) -> TLS:
    """A server's."""
    return TLS(**pem(authority.issue_cert("localhost", "127.0.0.1")))


@pytest.fixture(scope="module")
def theirs(authority: trustme.CA) -> TLS:
    """A client's."""
    return TLS(ca=authority.cert_pem.bytes())


def stdlib_client(authority: trustme.CA, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    context.minimum_version = context.maximum_version = version
    return context


def stdlib_server(leaf: trustme.LeafCert, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    leaf.configure_cert(context)
    context.minimum_version = context.maximum_version = version
    return context


@contextmanager
def connected(address: Any, **kwargs: Any) -> Iterator[LongConnection]:
    connection = longconn.connect(address, **{"timeout": PATIENCE, **kwargs})
    connection.settimeout(PATIENCE)
    try:
        yield connection
    finally:
        let_go(connection)


@contextmanager
def in_thread(work: Callable[[], object]) -> Iterator[None]:
    """What it raises is raised here."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        thread.join(PATIENCE)
    if failed:
        raise failed[0]


def echo(server: LongServer) -> None:
    for connection, message in server.messages():
        with suppress(longconn.LongConnError):
            connection.send(message)


@contextmanager
def echoing(tls: TLS | None, **kwargs: Any) -> Iterator[LongServer]:
    with LongServer(("127.0.0.1", 0), tls=tls, **kwargs) as server:
        with in_thread(lambda: echo(server)):
            try:
                yield server
            finally:
                server.close(drain=0)


# ---- what works


def test_messages_of_all_sizes_go_both_ways_and_both_sides_know_what_they_agreed_on(ours, theirs):
    with LongServer(("127.0.0.1", 0), tls=ours) as server, connected(server.address, tls=theirs) as client:
        connection = server.accept(timeout=PATIENCE)
        connection.settimeout(PATIENCE)
        messages = [b"", b"x", random.randbytes(64), random.randbytes(100_000), random.randbytes(5_000_000)]
        for sender, receiver in ((client, connection), (connection, client)):
            with in_thread(lambda sender=sender: [sender.send(message) for message in messages]):
                assert [receiver.recv() for _ in messages] == messages
        assert client.tls is not None
        assert connection.tls is not None
        assert client.tls.version == connection.tls.version == "TLSv1.3"
        assert client.tls.cipher == connection.tls.cipher
        assert client.tls.peer is not None
        assert client.tls.peer.dns_names == ("localhost",)
        assert client.tls.peer.addresses == ("127.0.0.1",)
        assert connection.tls.peer is None
        client.shutdown(socket.SHUT_WR)
        with pytest.raises(longconn.PeerClosed):
            connection.recv()


def test_without_tls_there_is_none():
    with LongServer(("127.0.0.1", 0)) as server, connected(server.address) as client:
        assert client.tls is None
        server.accept(timeout=PATIENCE).close()


def test_many_small_messages_of_one_burst_come_in_order(ours, theirs):
    with LongServer(("127.0.0.1", 0), tls=ours) as server, connected(server.address, tls=theirs) as client:
        connection = server.accept(timeout=PATIENCE)
        numbers = [number.to_bytes(4, "big") for number in range(50_000)]
        with in_thread(lambda: client.send_many(numbers)):
            received: list[bytes] = []
            while len(received) < len(numbers):
                received += connection.recv_many(1000, timeout=PATIENCE)
        assert received == numbers
        connection.close()


def test_a_name_a_path_and_protocols_in_common(ours, authority, tmp_path):
    (tmp_path / "ca.pem").write_bytes(authority.cert_pem.bytes())
    offered = TLS(ca=tmp_path / "ca.pem", server_name="localhost", alpn=["b/1", "a/1"])
    server_tls = TLS(certificate=ours.certificate, key=ours.key, alpn=["a/1", "b/1"])
    with LongServer(("127.0.0.1", 0), tls=server_tls) as server, connected(server.address, tls=offered) as client:
        assert client.tls is not None
        assert client.tls.alpn == "a/1"
        other = TLS(ca=offered.ca, alpn=["c/1"])
        with pytest.raises(ConnectFailed, match="alpn") as caught:
            longconn.connect(server.address, tls=other, timeout=PATIENCE)
        assert caught.value.cause is Cause.TLS


class Tunnel:
    """What is said at one end comes out of ``sock`` encrypted by the stdlib, and the reverse."""

    def __init__(self, secure: ssl.SSLSocket) -> None:
        self.end, self._inner = socket.socketpair()
        self._secure = secure
        self._thread = threading.Thread(target=self._carry)
        self._thread.start()

    def _carry(self) -> None:
        self._secure.setblocking(False)
        with self._secure, self._inner, suppress(OSError):
            while True:
                if not self._secure.pending():
                    select.select([self._secure, self._inner], [], [])
                with suppress(ssl.SSLWantReadError):
                    data = self._secure.recv(65536)
                    if not data:
                        return
                    self._inner.sendall(data)
                if select.select([self._inner], [], [], 0)[0]:
                    data = self._inner.recv(65536)
                    if not data:
                        return
                    self._secure.setblocking(True)
                    self._secure.sendall(data)
                    self._secure.setblocking(False)

    def close(self) -> None:
        self.end.close()
        self._thread.join(PATIENCE)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_peer_by_the_stdlibs_ssl_is_as_good_a_client(ours, authority, version, monkeypatch):
    monkeypatch.setattr(PlainPeer, "begin_link", without_options(PlainPeer.begin_link))
    with LongServer(("127.0.0.1", 0), tls=ours, heartbeat=Heartbeat(0.1)) as server:
        sock = socket.create_connection(server.address, timeout=PATIENCE)
        tunnel = Tunnel(stdlib_client(authority, version).wrap_socket(sock, server_hostname="localhost"))
        peer = PlainPeer(tunnel.end, is_client=True)
        peer.say_hello("plain", b"secret")
        connection = server.accept(timeout=PATIENCE)
        assert connection.tls is not None
        assert connection.tls.version == {VERSIONS[0]: "TLSv1.2", VERSIONS[1]: "TLSv1.3"}[version]
        message = random.randbytes(300_000)
        connection.send(message)
        assert peer.recv() == message
        peer.send(message)
        with in_thread(lambda: peer.run(lambda: not peer.queue and peer.beats_heard >= 3)):
            assert connection.recv(timeout=PATIENCE) == message
        let_go(connection)
        tunnel.close()


def without_options(begin_link: Callable[..., None]) -> Callable[..., None]:
    """The tunnel's end is no TCP socket."""

    def begin(self: PlainPeer, sock: socket.socket) -> None:
        class End:
            def __getattr__(self, name: str) -> Any:
                return getattr(sock, name)

            def setsockopt(self, *_: object) -> None:
                pass

        begin_link(self, End())

    return begin


# ---- who isn't trusted


@pytest.mark.parametrize(
    ("what", "says", "server_says"),
    [
        ("expired", "the server's certificate expired 3 days ago: have it renewed", "certificate expired"),
        ("not yet valid", "the server's certificate is not valid before", ""),
        ("wrong name", r"asked for 127.0.0.1, it is for other.example; connect by that name", "bad certificate"),
        ("unknown CA", r"issued by nobody whom this side trusts: give the certificate of its CA", "unknown CA"),
    ],
)
def test_a_client_says_why_it_does_not_trust_a_server(
    authority, other_authority, theirs, caplog, what, says, server_says
):
    caplog.set_level(logging.INFO, logger="longconn.link")
    leaf = {
        "expired": lambda: authority.issue_cert(
            "127.0.0.1", not_before=NOW - 9 * DAY, not_after=NOW - 3 * DAY - DAY / 9
        ),
        "not yet valid": lambda: authority.issue_cert("127.0.0.1", not_before=NOW + 3 * DAY, not_after=NOW + 9 * DAY),
        "wrong name": lambda: authority.issue_cert("other.example"),
        "unknown CA": lambda: other_authority.issue_cert("127.0.0.1"),
    }[what]()
    with LongServer(("127.0.0.1", 0), tls=TLS(**pem(leaf))) as server:
        with pytest.raises(ConnectFailed, match=says) as caught:
            longconn.connect(server.address, tls=theirs, timeout=PATIENCE)
        assert caught.value.cause is Cause.TLS
        assert caught.value.peer == server.address
        wait_until(lambda: server.stats().failed_tls == 1, "the server counts it")
        assert server.stats().failed_handshakes == 1
        wait_until(lambda: f"TLS failed: the client says: {server_says}" in caplog.text, "the server says it")


def test_the_systems_roots_are_who_is_trusted_where_nobody_is_named(authority, ours, tmp_path, monkeypatch):
    with LongServer(("127.0.0.1", 0), tls=ours) as server:
        with pytest.raises(ConnectFailed, match="trusts"):
            longconn.connect(server.address, tls=True, timeout=PATIENCE)
        (tmp_path / "roots.pem").write_bytes(authority.cert_pem.bytes())
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "roots.pem"))
        with connected(server.address, tls=True) as client:
            assert client.state == "open"


def test_who_does_not_speak_tls_is_shown_with_what_it_said(ours, theirs, caplog):
    caplog.set_level(logging.INFO, logger="longconn.link")
    with LongServer(("127.0.0.1", 0), tls=ours) as server:
        with pytest.raises(ConnectFailed, match="which is TLS: both sides have to be told of it"):
            longconn.connect(server.address, timeout=PATIENCE)
        wait_until(lambda: "doesn't speak TLS: it said b'LONGCONN" in caplog.text, "the server says it")
        with socket.create_connection(server.address, timeout=PATIENCE) as browser:
            browser.sendall(b"GET / HTTP/1.1\r\n\r\n")
            with suppress(ConnectionResetError):
                while browser.recv(100):
                    pass
        wait_until(lambda: "it said b'GET / HTTP/1.1" in caplog.text, "the server says it")
        assert server.stats().failed_tls == 2


def test_a_client_with_tls_at_a_server_without_is_told_so(theirs):
    with LongServer(("127.0.0.1", 0)) as server:
        with pytest.raises(ConnectFailed) as caught:
            longconn.connect(server.address, tls=theirs, timeout=PATIENCE)
        assert caught.value.cause in (Cause.TLS, Cause.HANDSHAKE)
        assert "TLS" in str(caught.value)
    with listening() as listener:

        def refuse() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(16)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                peer.recv(65536)

        with in_thread(refuse):
            with pytest.raises(ConnectFailed, match=r"doesn't speak TLS: it said b'HTTP/1.1 400") as caught:
                longconn.connect(listener.getsockname(), tls=theirs, timeout=PATIENCE)
        assert caught.value.cause is Cause.TLS


def test_of_several_addresses_the_one_that_is_trusted_wins(ours, theirs, other_authority):
    stranger = TLS(**pem(other_authority.issue_cert("127.0.0.1")))
    with LongServer(("127.0.0.1", 0), tls=stranger) as other, LongServer(("127.0.0.1", 0), tls=ours) as server:
        with connected([other.address, server.address], tls=theirs) as client:
            assert client.peer_address == server.address
            wait_until(lambda: other.stats().failed_tls == 1, "the other was asked")
        server.close()
        with pytest.raises(ConnectFailed, match=r"issued by nobody whom this side trusts.*; .*refused") as caught:
            longconn.connect([other.address, server.address], tls=theirs, timeout=PATIENCE)
        assert caught.value.cause is Cause.TLS


def test_a_handshake_that_is_cut_is_no_fault_of_tls(theirs):
    with listening() as listener:

        def leave() -> None:
            peer, _ = listener.accept()
            peer.recv(65536)
            peer.close()

        with in_thread(leave):
            with pytest.raises(ConnectFailed, match="cut in the TLS handshake") as caught:
                longconn.connect(listener.getsockname(), tls=theirs, timeout=PATIENCE)
        assert caught.value.cause is Cause.HANDSHAKE
        with pytest.raises(TimeoutError):
            longconn.connect(listener.getsockname(), tls=theirs, timeout=0.2)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1])
def test_what_is_older_than_tls_1_2_is_refused(ours, authority, version, caplog):
    caplog.set_level(logging.INFO, logger="longconn.link")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1 is deprecated"):
        context.minimum_version = context.maximum_version = version
    with LongServer(("127.0.0.1", 0), tls=ours) as server:
        with socket.create_connection(server.address, timeout=PATIENCE) as sock:
            with pytest.raises(ssl.SSLError):
                context.wrap_socket(sock, server_hostname="localhost")
        wait_until(lambda: "neither TLS 1.2 nor 1.3" in caplog.text, "the server says it")


# ---- clients with certificates


@pytest.fixture(scope="module")
def mutual(ours: TLS, authority: trustme.CA) -> TLS:
    return TLS(certificate=ours.certificate, key=ours.key, client_ca=authority.cert_pem.bytes())


def test_a_client_is_known_by_its_certificate(authority, mutual, theirs):
    leaf = authority.issue_cert("device-7.example", "10.0.0.7", "ops@device.example", common_name="device 7")
    told: list[tuple[Any, ...]] = []

    def authenticate(*arguments: Any) -> str:
        told.append(arguments)
        return arguments[3].common_name

    with LongServer(("127.0.0.1", 0), tls=mutual, authenticate=authenticate) as server:
        with connected(server.address, tls=TLS(ca=theirs.ca, **pem(leaf)), client_id="seven", token=b"t") as client:
            connection = server.accept(timeout=PATIENCE)
            assert connection.principal == "device 7"
            ((client_id, token, address, identity),) = told
            assert (client_id, token, address[0]) == ("seven", b"t", "127.0.0.1")
            assert connection.tls is not None
            assert identity == connection.tls.peer
            assert (identity.dns_names, identity.addresses) == (("device-7.example",), ("10.0.0.7",))
            assert identity.emails == ("ops@device.example",)
            der = ssl.PEM_cert_to_DER_cert(leaf.cert_chain_pems[0].bytes().decode())
            assert identity.der == der
            import hashlib

            assert identity.fingerprint == hashlib.sha256(der).hexdigest()
            assert client.state == "open"
            let_go(connection)


@pytest.mark.parametrize("has_one", [False, True])
def test_a_client_without_a_certificate_or_with_anothers_is_told_so(mutual, theirs, other_authority, caplog, has_one):
    caplog.set_level(logging.INFO, logger="longconn.link")
    own = pem(other_authority.issue_cert("device-8.example")) if has_one else {}
    with LongServer(("127.0.0.1", 0), tls=mutual) as server:
        with pytest.raises(ConnectFailed, match="unknown CA" if has_one else "certificate required") as caught:
            longconn.connect(server.address, tls=TLS(ca=theirs.ca, **own), timeout=PATIENCE)
        assert caught.value.cause is Cause.TLS
        reason = "it has to be of one of client_ca" if has_one else "the client has shown no certificate"
        wait_until(lambda: reason in caplog.text, "the server says it")
        assert server.stats().failed_tls == 1
        assert server.stats().opened == 0


# ---- what a program gives


def test_what_is_wrong_with_the_files_is_told_at_once(authority, other_authority, tmp_path):
    good = pem(authority.issue_cert("localhost"))
    other = pem(other_authority.issue_cert("localhost"))
    address = ("127.0.0.1", 0)
    junk = tmp_path / "junk.pem"
    junk.write_text("junk")

    def server(**kwargs: Any) -> None:
        LongServer(address, tls=TLS(**kwargs)).close()

    with pytest.raises(FileNotFoundError) as caught:
        server(certificate=tmp_path / "none.pem")
    assert caught.value.filename == str(tmp_path / "none.pem")
    with pytest.raises(ValueError, match="a server needs both"):
        server()
    with pytest.raises(ValueError, match=r"certificate: .*junk.pem: no certificate is in it"):
        server(certificate=junk)
    with pytest.raises(ValueError, match="key: no private key is in it"):
        server(certificate=good["certificate"], key=good["certificate"])
    with pytest.raises(ValueError, match="it isn't the key of the certificate"):
        server(certificate=good["certificate"], key=other["key"])
    with pytest.raises(ValueError, match="for clients"):
        server(ca=good["certificate"], **good)
    with pytest.raises(ValueError, match="for servers"):
        longconn.connect("localhost:1", tls=TLS(client_ca=good["certificate"]))
    with pytest.raises(ValueError, match="neither a host name nor an IP address"):
        longconn.connect("localhost:1", tls=TLS(ca=good["certificate"], server_name="a b"))
    with pytest.raises(TypeError, match="ca: a path"):
        TLS(ca=7)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tls: a TLS"):
        longconn.connect("localhost:1", tls="yes")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="tls: a TLS with the server's certificate"):
        LongServer(address, tls=True)  # type: ignore[arg-type]
    assert "PRIVATE" not in repr(TLS(**good))


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL], ids=["PKCS8", "traditional"])
def test_a_key_with_a_password_is_refused_with_the_command_that_takes_it_off(authority, tmp_path, form):
    leaf = authority.issue_cert("localhost")
    folder = tmp_path / "somebody's keys"
    folder.mkdir()
    path = folder / "device.pem"
    key = load_pem_private_key(leaf.private_key_pem.bytes(), None)
    path.write_bytes(key.private_bytes(Encoding.PEM, form, BestAvailableEncryption(b"secret")))
    chain = b"".join(each.bytes() for each in leaf.cert_chain_pems)
    for source, shown in ((path.read_bytes(), ""), (path, f": {path}")):
        with pytest.raises(ValueError, match="it is encrypted; decrypt it first") as refused:
            LongServer(("127.0.0.1", 0), tls=TLS(certificate=chain, key=source))
        assert str(refused.value).startswith(f"key{shown}: ")
    told = re.search(r"\((openssl .*)\),", str(refused.value))
    assert told is not None
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on PATH, to try the command with")
    done = subprocess.run(
        [*shlex.split(told[1]), "-passin", "pass:secret"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "plain.pem").stat().st_mode & 0o077 == 0
    with LongServer(("127.0.0.1", 0), tls=TLS(certificate=chain, key=tmp_path / "plain.pem")) as server:
        longconn.connect(server.address, tls=TLS(ca=authority.cert_pem.bytes(), server_name="localhost")).close()


def test_a_renewed_certificate_is_for_who_comes_next_and_a_broken_one_for_nobody(authority, ours, theirs):
    renewed = authority.issue_cert("127.0.0.1", common_name="renewed")
    with echoing(ours) as server:
        with connected(server.address, tls=theirs) as before:
            with pytest.raises(ValueError, match="it isn't the key"):
                server.reload_tls(TLS(certificate=pem(renewed)["certificate"], key=ours.key))
            with pytest.raises(ValueError, match="client_ca"):
                server.reload_tls(TLS(client_ca=theirs.ca, **pem(renewed)))
            with connected(server.address, tls=theirs) as meanwhile:
                assert meanwhile.tls.peer.common_name is None
            server.reload_tls(TLS(**pem(renewed)))
            with connected(server.address, tls=theirs) as after:
                assert after.tls.peer.common_name == "renewed"
            before.send(b"still here")
            assert before.recv() == b"still here"
    with LongServer(("127.0.0.1", 0)) as server, pytest.raises(ValueError, match="without TLS"):
        server.reload_tls(ours)


# ---- who is slow


def test_who_stops_in_the_middle_of_the_handshake_is_gone_after_its_time(ours):
    with LongServer(("127.0.0.1", 0), tls=ours, handshake_timeout=0.3) as server:
        with socket.create_connection(server.address, timeout=PATIENCE) as silent:
            silent.sendall(b"\x16\x03\x01\x02\x00\x01")
            wait_until(lambda: server.stats().handshakes == 1, "it has come")
            assert silent.recv(1) == b""
        wait_until(lambda: server.stats().failed_handshakes == 1, "it is counted")
        assert server.stats().handshakes == 0
        assert server.stats().failed_tls == 0


def test_a_server_that_closes_waits_for_nobodys_handshake(ours):
    server = LongServer(("127.0.0.1", 0), tls=ours, handshake_timeout=1000)
    with socket.create_connection(server.address, timeout=PATIENCE) as silent:
        wait_until(lambda: server.stats().handshakes == 1, "it has come")
        server.close()
        with suppress(ConnectionResetError):
            assert silent.recv(1) == b""


def test_a_thousand_who_stop_in_the_middle_make_nobody_miss_a_beat(ours, theirs):
    """Half of them have said all of their first flight, which costs the server a signature each."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    try:
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        asked = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname="localhost")
        with pytest.raises(ssl.SSLWantReadError):
            asked.do_handshake()
        hello = outgoing.read()
        beats = Heartbeat(0.1, limit=5.0 * SLACK)
        with ExitStack() as stack:
            states: list[str] = []
            server = stack.enter_context(
                LongServer(
                    ("127.0.0.1", 0),
                    tls=ours,
                    heartbeat=beats,
                    max_handshakes=1200,
                    on_event=lambda _, event: states.append(event.state),
                )
            )
            good = [stack.enter_context(connected(server.address, tls=theirs, heartbeat=beats)) for _ in range(100)]
            for number in range(1000):
                sock = stack.enter_context(socket.create_connection(server.address, timeout=PATIENCE))
                sock.sendall(hello if number % 2 else hello[:100])
            wait_until(lambda: server.stats().handshakes == 1000, "all have come")
            before = [client.stats().beats_heard for client in good]
            wait_until(
                lambda: all(
                    client.stats().beats_heard >= count + 5 for client, count in zip(good, before, strict=True)
                ),
                "beats come",
            )
            assert server.stats().crowded_out == 0
            assert {client.state for client in good} == {"open"}
            assert {client.stats().connections for client in good} == {1}
            assert {state for state in states if state in ("reconnecting", "closed")} == set()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# ---- sessions


def test_a_session_comes_back_by_a_ticket_and_loses_nothing(ours, theirs):
    with echoing(ours) as server:
        proxy = FaultProxy(server)
        try:
            with connected(proxy.address, tls=theirs, reconnect=SOON) as client:
                assert client.tls is not None
                assert not client.tls.resumed
                chance = random.Random(7)
                count = 3000

                def send() -> None:
                    for number in range(count):
                        client.send(number.to_bytes(4, "big") * chance.randrange(1, 2000))
                        if chance.random() < 0.005:
                            proxy.end()

                with in_thread(send):
                    assert [client.recv()[:4] for _ in range(count)] == [n.to_bytes(4, "big") for n in range(count)]
                client.wait_for("open")
                assert client.stats().connections > 1
                assert client.tls.resumed
                assert client.tls.peer is not None
        finally:
            proxy.close()


def test_a_session_ends_where_the_server_is_not_trusted_any_more(ours, theirs, other_authority):
    with echoing(ours) as server:
        proxy = FaultProxy(server)
        try:
            with connected(proxy.address, tls=theirs, reconnect=SOON) as client:
                server.reload_tls(TLS(**pem(other_authority.issue_cert("127.0.0.1"))))
                proxy.end()
                with pytest.raises(
                    longconn.PeerLost, match=r"TLS failed.*issued by nobody whom this side trusts"
                ) as caught:
                    client.recv()
                assert caught.value.cause is Cause.TLS
        finally:
            proxy.close()


def test_a_forked_child_leaves_the_parents_connection_alone(ours, theirs):
    with echoing(ours) as server, connected(server.address, tls=theirs) as client:
        child = os.fork()
        if child == 0:
            code = 1
            with suppress(BaseException):
                try:
                    client.send(b"from the child")
                except longconn.ForkedError:
                    code = 0
            os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        client.send(b"still here")
        assert client.recv() == b"still here"


# ---- plain peers


@contextmanager
def stdlib_peer(
    leaf: trustme.LeafCert, version: ssl.TLSVersion, talk: Callable[[ssl.SSLSocket], object]
) -> Iterator[Any]:
    with listening() as listener:

        def serve() -> None:
            sock, _ = listener.accept()
            with sock, stdlib_server(leaf, version).wrap_socket(sock, server_side=True) as secure:
                secure.settimeout(PATIENCE)
                talk(secure)

        with in_thread(serve):
            yield listener.getsockname()


@pytest.mark.parametrize("version", VERSIONS)
def test_a_raw_stream_to_a_plain_server_ends_cleanly_with_close_notify(authority, theirs, version):
    leaf = authority.issue_cert("127.0.0.1")
    content = random.randbytes(1_000_000)

    def talk(secure: ssl.SSLSocket) -> None:
        secure.sendall(b"welcome\n")
        received = b""
        while data := secure.recv(65536):
            received += data
        assert received == content
        secure.sendall(b"thanks")
        secure.unwrap()

    with stdlib_peer(leaf, version, talk) as address, connected(address, tls=theirs, framing="raw") as client:
        assert client.recv() == b"welcome\n"
        client.send(content)
        client.flush()
        assert client.stats().untaken_bytes == 0
        client.shutdown(socket.SHUT_WR)
        assert client.recv() == b"thanks"
        assert client.recv() == b""


def test_a_stream_that_ends_without_close_notify_is_no_clean_end(authority, theirs):
    def talk(secure: ssl.SSLSocket) -> None:
        secure.sendall(b"half of")
        secure.recv(1)
        os.close(secure.detach())  # FIN, and nothing of TLS's

    leaf = authority.issue_cert("127.0.0.1")
    with stdlib_peer(leaf, VERSIONS[1], talk) as address, connected(address, tls=theirs, framing="raw") as client:
        assert client.recv() == b"half of"
        client.send(b"x")
        with pytest.raises(longconn.PeerLost, match="close_notify: it may be cut short") as caught:
            client.recv()
        assert caught.value.cause is Cause.ENDED


@pytest.mark.parametrize("version", VERSIONS)
def test_a_server_of_lines_takes_plain_clients_with_tls(ours, authority, version):
    with LongServer(("127.0.0.1", 0), tls=ours, framing="lines") as server:
        with socket.create_connection(server.address, timeout=PATIENCE) as sock:
            with stdlib_client(authority, version).wrap_socket(sock, server_hostname="localhost") as secure:
                secure.sendall(b"one\ntwo\n")
                connection = server.accept(timeout=PATIENCE)
                assert [connection.recv(timeout=PATIENCE) for _ in range(2)] == [b"one\n", b"two\n"]
                connection.send(b"three\n")
                assert secure.recv(100) == b"three\n"
                connection.close()
                assert secure.recv(100) == b""  # close_notify: ssl says otherwise by SSLEOFError
