"""An ext_proc server that changes nothing: the floor of a transport's cost.

python -m bench.echo unix:/tmp/p.sock --transport http2
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Sequence

import uvloop

from bench.direct import PROCESS
from extproc.transport import heap
from extproc.transport.grpcio import GrpcioServer
from extproc.transport.http2 import Http2Server
from extproc.transport.seam import Server, Stream
from proto import ext_proc_pb2 as pb

_HEADERS = pb.ProcessingResponse(request_headers=pb.HeadersResponse()).SerializeToString()
_BODY = pb.ProcessingResponse(request_body=pb.BodyResponse()).SerializeToString()


class NoOp:
    """Answers a header message with "continue" and a body with "continue", in every mode but duplex with its bytes."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.duplex = False

    def message(self, data: bytes) -> None:
        request = pb.ProcessingRequest.FromString(data)
        if request.HasField("request_headers"):
            self.duplex = request.protocol_config.request_body_mode == pb.ProcessingMode.FULL_DUPLEX_STREAMED
            self.stream.send(_HEADERS)
        elif self.duplex:
            reply = pb.ProcessingResponse()
            streamed = reply.request_body.response.body_mutation.streamed_response
            streamed.body = request.request_body.body
            streamed.end_of_stream = request.request_body.end_of_stream
            self.stream.send(reply.SerializeToString())
        else:
            self.stream.send(_BODY)

    def half_closed(self) -> None:
        self.stream.finish()

    def closed(self) -> None:
        pass


async def serve(listen: str, transport: str) -> None:
    """Serve until SIGTERM or SIGINT."""
    handlers = {PROCESS: NoOp}
    server: Server = Http2Server(handlers) if transport == "http2" else GrpcioServer(handlers)
    await server.start(listen)
    print(server.address, flush=True)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    await server.drain(1.0)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("listen")
    parser.add_argument("--transport", choices=("http2", "grpcio"), default="http2")
    parser.add_argument("--asyncio", action="store_true", help="the standard event loop instead of uvloop")
    chosen = parser.parse_args(arguments)
    heap.keep()
    (asyncio.run if chosen.asyncio else uvloop.run)(serve(chosen.listen, chosen.transport))
    return 0


if __name__ == "__main__":
    sys.exit(main())
