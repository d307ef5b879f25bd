"""The native module: what the Python side calls. Not for users; no promises."""

from collections.abc import Callable
from typing import Any, Final, final

__all__ = [
    "HAS_GUARD",
    "KEEPALIVE_COUNT",
    "KEEPALIVE_SECONDS",
    "PLATFORM",
    "SocketMixin",
    "TcpInfo",
    "Watch",
    "add_fast_methods",
    "after_in_child",
    "after_in_parent",
    "apply_keepalive",
    "before_fork",
    "has_rto_max",
    "keepalive_of",
    "logging_imported",
    "pretend_no_rto_max",
    "register_at_fork",
    "rto_max_for",
    "shut_down",
    "socket_kind",
    "tcp_info",
    "warn",
    "watch",
]

HAS_GUARD: Final[bool]
KEEPALIVE_COUNT: Final[tuple[int, int]]
"""Least and most probes that the platform takes."""
KEEPALIVE_SECONDS: Final[tuple[int, int]]
"""Least and most whole seconds that the platform takes."""
PLATFORM: Final[str]

class SocketMixin:
    """The hot methods of KeepaliveSocket; a mixin without fields."""

    def recv(self, bufsize: int, flags: int = 0, /) -> bytes: ...
    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int: ...
    def recvfrom(self, *args: Any) -> Any: ...
    def recvfrom_into(self, *args: Any, **kwargs: Any) -> Any: ...
    def recvmsg(self, *args: Any) -> Any: ...
    def recvmsg_into(self, *args: Any) -> Any: ...
    def send(self, data: Any, flags: int = 0, /) -> int: ...
    def sendall(self, data: Any, flags: int = 0, /) -> None: ...
    def sendmsg(self, *args: Any) -> Any: ...
    def sendto(self, *args: Any) -> Any: ...

@final
class TcpInfo:
    """What the kernel knows of a connection: ``struct tcp_info`` of tcp(7), with the units in the names.

    Fields that an older kernel doesn't fill in are 0. ``_us`` are microseconds, ``_ms`` milliseconds;
    counters count from the connection's beginning.
    """

    __hash__: None  # type: ignore[assignment]
    state: Final[str]
    """``ESTABLISHED``, ``CLOSE_WAIT``, ... as ss(8) and netstat(8) have it."""
    retransmits: Final[int]
    """Retransmission timeouts of the segment that is first in flight."""
    probes: Final[int]
    """Keepalive or window probes without an answer."""
    backoff: Final[int]
    """How often the retransmission or probe timer has doubled."""
    retransmission_timeout_us: Final[int]
    round_trip_us: Final[int]
    round_trip_variation_us: Final[int]
    least_round_trip_us: Final[int]
    last_data_sent_ms: Final[int]
    """Since data was sent last; likewise the next two."""
    last_data_received_ms: Final[int]
    last_ack_received_ms: Final[int]
    unacked_segments: Final[int]
    """In flight."""
    lost_segments: Final[int]
    retransmitted_segments: Final[int]
    segments_in: Final[int]
    segments_out: Final[int]
    data_segments_in: Final[int]
    data_segments_out: Final[int]
    out_of_order_segments: Final[int]
    bytes_acked: Final[int]
    bytes_received: Final[int]
    bytes_sent: Final[int]
    """With retransmissions."""
    bytes_retransmitted: Final[int]
    unsent_bytes: Final[int]
    """Accepted from the program and not sent yet."""
    send_window_bytes: Final[int]
    """What the peer lets us send."""
    receive_window_bytes: Final[int]
    congestion_window_segments: Final[int]
    send_segment_bytes: Final[int]
    receive_segment_bytes: Final[int]
    path_mtu_bytes: Final[int]
    delivery_rate_bytes_per_second: Final[int]
    def _asdict(self) -> dict[str, int | str]: ...
    def __eq__(self, other: object, /) -> bool: ...
    def __ne__(self, other: object, /) -> bool: ...

@final
class Watch:
    """A guarded socket."""

    @property
    def conviction(self) -> tuple[str, float, float, str] | None:
        """(cause, silence, limit, judged by), seconds."""
    @property
    def is_active(self) -> bool: ...
    @property
    def looks(self) -> int: ...
    @property
    def peer(self) -> tuple[str, int] | None: ...
    @property
    def rto_max_ms(self) -> int | None: ...
    def stop(self, *, restore: bool = False) -> None: ...
    def disown(self) -> None: ...
    def look(self) -> None: ...

def add_fast_methods(class_: type[SocketMixin], /) -> None:
    """Give the class, of the mixin and of `socket.socket`, bare C functions for small `recv` and `send`."""

def watch(
    fd: int,
    limit: float,
    *,
    is_owned: bool = False,
    may_be_unconnected: bool = False,
    keepalive_options: tuple[bool, float, float, int] | None = None,
    on_lost: Callable[[str, float, float, str], object] | None = None,
) -> Watch: ...
def apply_keepalive(
    fd: int,
    *,
    enabled: bool | None = None,
    idle: float | None = None,
    interval: float | None = None,
    count: int | None = None,
    user_timeout: float | None = None,
) -> None: ...
def keepalive_of(fd: int) -> tuple[bool, float, float, int, float]: ...
def socket_kind(fd: int) -> tuple[int, int, int]: ...
def tcp_info(fd: int) -> TcpInfo: ...
def has_rto_max(fd: int) -> bool: ...
def rto_max_for(limit: float) -> float: ...
def pretend_no_rto_max(pretend: bool) -> None: ...
def warn(text: str) -> None:
    """Log a warning as ``longconn``, by way of the native queue, so that `logging` is imported only if needed."""

def register_at_fork() -> None: ...
def logging_imported() -> None: ...
def before_fork() -> None: ...
def after_in_parent() -> None: ...
def after_in_child() -> None: ...
def shut_down() -> None: ...
