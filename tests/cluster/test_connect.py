"""Connecting to a Ray that is not there: said in one line, soon, and by its address."""

import socket
import time

import pytest

from fmray import cluster
from fmray.core.errors import ResourceError


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nothing_listens_is_one_line(monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setattr(cluster, "HEAD_SILENT_S", 0.5)
    address = f"{scheme}127.0.0.1:{free_port()}"
    clock = time.monotonic()
    with pytest.raises(ResourceError, match=r"no Ray answers there \(.*refused.*\); start one with `ray start --head`, or unset it") as caught:
        cluster._require_head(address)
    assert str(caught.value).startswith(f"RAY_ADDRESS={address}: ")
    assert time.monotonic() - clock < 10


def test_one_that_comes_up_meanwhile_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    port = free_port()
    late: list[socket.socket] = []

    def listen(seconds: float) -> None:
        late.append(socket.create_server(("127.0.0.1", port)))

    monkeypatch.setattr(cluster.time, "sleep", listen)
    cluster._require_head(f"127.0.0.1:{port}")
    assert len(late) == 1
    late[0].close()


def test_an_address_without_a_port_is_left_to_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(cluster.socket, "create_connection", lambda *to, **more: asked.append(to))
    cluster._require_head("auto")
    assert asked == []
