"""The health service says what Envoy and kubelet ask for."""

import pytest

from extproc.health import CHECK, SERVICES, WATCH, Health


class FakeStream:
    def __init__(self):
        self.sent = []
        self.finished = None

    def send(self, message):
        self.sent.append(message)

    def finish(self, status=0, message=""):
        self.finished = status


def asked(health, method, service):
    stream = FakeStream()
    receiver = health.handlers()[method](stream)
    name = service.encode()
    length = bytes([len(name)]) if len(name) < 128 else bytes([len(name) & 0x7F | 0x80, len(name) >> 7])
    receiver.message(b"\x0a" + length + name if name else b"")
    receiver.half_closed()
    return stream, receiver


SERVING, NOT_SERVING, SERVICE_UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"


@pytest.mark.parametrize("service", SERVICES)
def test_check_says_not_serving_until_told_and_liveness_always_serves(service):
    health = Health()
    before, _ = asked(health, CHECK, service)
    assert before.sent == [SERVING if service == "liveness" else NOT_SERVING]
    health.serving(True)
    after, _ = asked(health, CHECK, service)
    assert (after.sent, after.finished) == ([SERVING], 0)


def test_check_of_an_unknown_service_is_not_found():
    stream, _ = asked(Health(), CHECK, "x" * 200)
    assert (stream.sent, stream.finished) == ([], 5)


@pytest.mark.parametrize(
    "data",
    [b"\x0a", b"\x12\x01a", b"\x0a\x05ab", b"\x0a\x80", b"\x0a\x80\x80\x01", b"\x0a\x01\xff", b"\x0a" + b"x" * 400],
)
@pytest.mark.parametrize("method", [CHECK, WATCH])
def test_a_message_that_is_no_request_is_an_invalid_argument(method, data):
    stream = FakeStream()
    Health().handlers()[method](stream).message(data)
    assert stream.finished == 3


def test_watch_tells_every_change_once():
    health = Health()
    stream, receiver = asked(health, WATCH, "readiness")
    health.serving(True)
    health.serving(True)
    health.serving(False)
    assert stream.sent == [NOT_SERVING, SERVING, NOT_SERVING]
    receiver.message(b"")
    receiver.closed()
    health.serving(True)
    assert len(stream.sent) == 3
    assert stream.finished is None


def test_watch_of_an_unknown_service_says_so_and_goes_on():
    stream, _ = asked(Health(), WATCH, "nope")
    assert (stream.sent, stream.finished) == ([SERVICE_UNKNOWN], None)
