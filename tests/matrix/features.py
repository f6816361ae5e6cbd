"""The rows of the matrix: which checks make up a feature (pure)."""

from __future__ import annotations

from typing import Final, NamedTuple

from hvsock.testing import CHECKS

from .probes import PROBES


class Feature(NamedTuple):
    """A row.

    Attributes:
        name: as the table shows it.
        checks: names of checks of the stream suite, and of probes.
    """

    name: str
    checks: tuple[str, ...]


class Section(NamedTuple):
    """Rows under one heading."""

    title: str
    features: tuple[Feature, ...]


def _single(prefix: str, words: str, *names: str) -> tuple[Feature, ...]:
    """One row for each of some probes that have the same beginning."""
    return tuple(Feature(words.format(_SHOWN.get(name, name)), (f"{prefix}_{name}",)) for name in names)


_SHOWN: Final = {
    "parent": "PARENT",
    "loopback": "LOOPBACK",
    "vm_id": "a VmId",
    "cid": "the VmId of a CID",
    "silohost": "SILOHOST",
    "any": "WILDCARD",
    "children": "CHILDREN",
}

SECTIONS: Final = (
    Section(
        "Address forms",
        (
            *_single("connect", "connect to {}", "parent", "loopback", "vm_id", "cid", "silohost"),
            *_single("listen", "listen on {}", "parent", "loopback", "vm_id", "silohost"),
            Feature("a service by its port", ("service_port",)),
            Feature("a service with any GUID", ("service_guid",)),
            Feature("ServiceId zero takes a fresh service", ("service_fresh",)),
        ),
    ),
    Section(
        "Wildcards",
        (
            *_single("listen", "listen on {}", "any", "children"),
            Feature("a wildcard is no destination", ("destination_wildcard",)),
        ),
    ),
    Section(
        "Peer identity",
        (
            Feature("both ends have the names of the table", ("names_of_both_ends",)),
            Feature("both ends know the service", ("names_of_services",)),
            Feature("the accepted end knows the connector's own", ("names_of_connectors",)),
        ),
    ),
    Section(
        "Readiness",
        (
            Feature("select on a connected socket", ("select_tells_readiness",)),
            Feature(
                "poll and epoll, by level and by edge",
                ("poll_tells_readiness", "epoll_tells_readiness", "epoll_edges"),
            ),
            Feature("select on a listening socket", ("select_listening",)),
            Feature("select on a connecting socket", ("select_connecting",)),
            Feature(
                "without waiting", ("nonblocking_send_fills_then_drains", "nonblocking_recv", "accept_nonblocking")
            ),
            Feature("the descriptor stays the same", ("descriptor_is_stable",)),
        ),
    ),
    Section(
        "Streams",
        (
            Feature(
                "every byte, once and in order",
                (
                    *(
                        "small_both_ways",
                        "large_duplex",
                        "order_kept",
                        "many_small_messages",
                        "recv_at_most_asked",
                    ),
                    *("recv_of_zero_bytes", "recv_into_partial", "sends_any_buffer", "buffer_is_free_after_send"),
                    *("send_of_nothing", "send_returns_count"),
                ),
            ),
            Feature(
                "half-close",
                (
                    *("eof_after_all_data", "eof_without_data", "half_close_keeps_other_direction"),
                    *("shutdown_twice", "send_after_own_shutdown"),
                ),
            ),
            Feature(
                "graceful close",
                (
                    *("close_delivers_everything", "close_twice", "use_after_own_close", "send_after_peer_closed"),
                    *("close_after_reading_all_is_no_reset", "blocked_recv_wakes_on_eof"),
                ),
            ),
            Feature(
                "a close with data unread is a reset",
                ("unread_data_at_close_is_reset", "blocked_recv_wakes_on_reset"),
            ),
            Feature(
                "flow control",
                (
                    *("blocked_recv_wakes_on_data", "blocked_send_proceeds_when_peer_reads"),
                    *("blocked_send_fails_when_peer_closes", "clogged_direction_leaves_other_free"),
                    "pairs_are_independent",
                ),
            ),
            Feature(
                "MSG_PEEK, makefile, sendfile, sendmsg",
                ("peek_takes_nothing", "makefile_round_trip", "sendfile_sends_all", "sendmsg_and_recvmsg_into"),
            ),
        ),
    ),
    Section(
        "Time-outs",
        (
            Feature(
                "of recv and send; nothing is lost", ("recv_timeout_loses_nothing", "send_timeout_loses_nothing")
            ),
            Feature("of accept", ("accept_timeout",)),
        ),
    ),
    Section(
        "Options",
        (
            Feature("HVSOCKET_CONNECT_TIMEOUT", ("option_connect_timeout",)),
            Feature("its default can be read", ("option_default",)),
            Feature("HVSOCKET_CONNECTED_SUSPEND", ("option_connected_suspend",)),
            Feature("HVSOCKET_CONTAINER_PASSTHRU", ("option_container_passthru",)),
            Feature("HVSOCKET_HIGH_VTL", ("option_high_vtl",)),
        ),
    ),
    Section(
        "Error codes",
        (
            Feature("nothing listens: ECONNREFUSED; then another try", ("error_nobody_listens",)),
            Feature("an unknown VmId: EHOSTUNREACH or ENETUNREACH", ("error_unknown_vm",)),
            Feature("bound twice: EADDRINUSE", ("error_bound_twice",)),
            Feature("not bound, not connected: EINVAL, ENOTCONN", ("error_no_names",)),
            Feature("connected already: EISCONN", ("error_connected_already",)),
            Feature("SOCK_DGRAM: ESOCKTNOSUPPORT", ("error_datagram",)),
        ),
    ),
    Section("SEQPACKET", (Feature("messages keep their boundaries", ("seqpacket_messages",)),)),
)

STREAM_CHECKS: Final = tuple(CHECKS)
"""The stream suite's checks."""
ALL_CHECKS: Final = (*STREAM_CHECKS, *PROBES)
"""Every check that a transport is put to."""
