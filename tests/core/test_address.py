"""Addresses of servers: what requests carry, and what no message shows."""

from __future__ import annotations

import base64

import pytest
import requests

from anomalydiffusion_core.errors import InputError
from anomalydiffusion_core.server.address import TOKEN_VARIABLE, server_address


def request_to(text: str, path: str) -> requests.PreparedRequest:
    address = server_address(text)
    made = address.session()
    return made.prepare_request(requests.Request("GET", address.url(path), params={"q": "1"}))


@pytest.mark.parametrize(
    ("text", "url", "socket"),
    [
        ("127.0.0.1:8188", "http://127.0.0.1:8188/queue?q=1", "ws://127.0.0.1:8188/ws?clientId=c"),
        ("http://box:8188/", "http://box:8188/queue?q=1", "ws://box:8188/ws?clientId=c"),
        ("https://x-8188.proxy.net", "https://x-8188.proxy.net/queue?q=1", "wss://x-8188.proxy.net/ws?clientId=c"),
        ("https://a.b/user/comfy/", "https://a.b/user/comfy/queue?q=1", "wss://a.b/user/comfy/ws?clientId=c"),
        (
            "https://a.b/c?token=s%26ecret",
            "https://a.b/c/queue?token=s%26ecret&q=1",
            "wss://a.b/c/ws?token=s%26ecret&clientId=c",
        ),
        ("[::1]:8188", "http://[::1]:8188/queue?q=1", "ws://[::1]:8188/ws?clientId=c"),
    ],
)
def test_requests_and_socket_go_where_the_address_says(text: str, url: str, socket: str) -> None:
    assert request_to(text, "/queue").url == url
    assert server_address(text).socket_url("c") == socket


def test_user_and_token_become_headers(monkeypatch: pytest.MonkeyPatch) -> None:
    sent = request_to("https://me:p%40ss@a.b", "/queue")
    assert sent.url == "https://a.b/queue?q=1"
    assert sent.headers["Authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    monkeypatch.setenv(TOKEN_VARIABLE, "t0ken")
    assert request_to("https://a.b", "/queue").headers["Authorization"] == "Bearer t0ken"
    assert server_address("https://a.b").headers == {"Authorization": "Bearer t0ken"}


@pytest.mark.parametrize("text", ["https://me:secret@a.b/c?token=secret", "https://secret:secret@a.b"])
def test_an_address_in_a_message_has_no_secret(text: str) -> None:
    assert "secret" not in f"{server_address(text)} {server_address(text)!r}"


@pytest.mark.parametrize(
    "text",
    ["", "host:port", "127.0.0.1:99999", "127.0.0.1:0", "ftp://a.b", "http://", "a b:1", "http://[::1", "x:1\n"],
)
def test_other_texts_are_refused_by_name(text: str) -> None:
    if text == "x:1\n":  # blanks around an address are nobody's intention
        assert str(server_address(text)) == "x:1"
        return
    with pytest.raises(InputError, match="^address: "):
        server_address(text)


def test_a_refused_address_shows_no_secret() -> None:
    with pytest.raises(InputError, match="^address: ") as caught:
        server_address("https://me:secret@a.b:port/?token=secret")
    assert "secret" not in str(caught.value)
