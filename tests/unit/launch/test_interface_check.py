"""horovodrun's check of the hosts' interfaces, as our build of Horovod mends it."""

from __future__ import annotations

import socket
import threading
import time
from typing import Any

import pytest

pytest.importorskip("horovod", reason="LOUD SKIP: Horovod is not installed")
from horovod.runner.common.util import network, secret


class SlowToAnswer(network.BasicService):  # type: ignore[misc]
    """Says that a request is there before it answers, as a task does whose main thread the last one wakes."""

    def __init__(self, key: bytes) -> None:
        self.asked = threading.Event()
        super().__init__("slow", key, None)

    def _handle(self, req: object, client_address: object) -> object:
        if isinstance(req, network.AckResponse):  # any message but a ping
            self.asked.set()
            time.sleep(0.2)
            return network.AckResponse()
        return super()._handle(req, client_address)


@pytest.fixture
def service() -> SlowToAnswer:
    return SlowToAnswer(secret.make_secret_key())


def connect(service: SlowToAnswer) -> network.BasicClient:
    return network.BasicClient("slow", service.addresses(), service._wire._key, 0)


def test_a_service_that_ends_has_written_its_last_answer(service: SlowToAnswer) -> None:
    """Without it the asker's next try meets a closed port, and horovodrun ends the job without a word."""
    client = connect(service)
    answers: list[Any] = []
    written = threading.Event()
    write = service._wire.write

    def write_and_say(message: object, file: Any) -> None:
        write(message, file)
        if isinstance(message, network.AckResponse):
            written.set()

    service._wire.write = write_and_say
    asker = threading.Thread(target=lambda: answers.append(client._send(network.AckResponse())))
    asker.start()
    assert service.asked.wait(10)
    service.shutdown()
    assert written.is_set()
    asker.join(10)
    assert isinstance(answers[0], network.AckResponse)


def test_a_stranger_who_says_nothing_keeps_no_service_from_its_end(service: SlowToAnswer) -> None:
    with socket.create_connection(("127.0.0.1", service.get_port())):
        connect(service)  # the server has taken the stranger's connection before this one
        ended = threading.Thread(target=service.shutdown)
        ended.start()
        ended.join(10)  # a handler waits 30 s for a word
        assert not ended.is_alive()
