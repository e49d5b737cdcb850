"""gRPC over HTTP/2 as state machines without I/O, as much of it as a picker's server needs.

Why our own: a pick is one small call, and what a general server does around it (tasks, queues, a thread that polls)
costs more than the pick. ADR 0010 has the figures. Three layers, each of which knows only the one below:

    frames, header_blocks    bytes of frames and of headers
    connection               streams, flow control, errors of HTTP/2: `receive(bytes) -> events`, `output() -> bytes`
    calls                    messages and status of gRPC: methods hear of messages and send answers

Left out, because no proxy sends it to a picker: priorities (obsolete), push, compression of messages, upgrade from
HTTP/1.1. What a peer may make us hold or do is bounded by a constant at the top of each module.
"""
