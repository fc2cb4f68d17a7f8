"""What gRPC is told about connections: how large a message may be, and when a silent client counts as gone."""

MAX_MESSAGE_BYTES = 1 << 20


def channel_options(keepalive_seconds: float) -> tuple[tuple[str, int], ...]:
    """Options of the server.

    Args:
        keepalive_seconds: silence after which a client is asked whether it is still there. Without an answer within a
            third of that, its connection is closed and its calls are cancelled.
    """
    silence_ms = max(round(1000 * keepalive_seconds), 1)
    answer_ms = max(silence_ms // 3, 1)
    return (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        ("grpc.so_reuseport", 0),  # a second server on the same port must fail, not share
        # Notice clients that vanished without a word, and let idle clients ask whether we are still there.
        ("grpc.keepalive_time_ms", silence_ms),
        ("grpc.keepalive_timeout_ms", answer_ms),
        ("grpc.http2.ping_timeout_ms", answer_ms),  # the one that gRPC keeps to; a minute, where it isn't set
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),  # as many as it takes: a reader can be silent for minutes
        ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
    )
