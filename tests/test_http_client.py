"""What all HTTP clients share: Retry-After, keys, and events out of a stream of bytes."""

import asyncio
import email.utils
import time
from collections.abc import AsyncIterator

import pytest

from reasongenrm import http_client
from reasongenrm.errors import ConfigError
from reasongenrm.http_client import (
    LongLineError,
    ServerEvent,
    bearer,
    parse_address,
    read_events,
    retry_after_seconds,
    words_of,
)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0.0), (" 7 ", 7.0), (None, None), ("", None), ("-1", None), ("soon", None), ("\u0667", None)],
)
def test_retry_after_is_a_number_of_seconds(value: str | None, seconds: float | None) -> None:
    assert retry_after_seconds(value) == seconds


def test_retry_after_may_be_a_date_and_one_that_is_past_is_now() -> None:
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    ahead = retry_after_seconds(email.utils.formatdate(time.time() + 3600, usegmt=True))
    assert ahead is not None
    assert 3000 < ahead <= 3600


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ('{"error": {"message": "Too long.", "code": 400}}', "Too long"),
        ('{"error": "Unauthorized"}', "Unauthorized"),
        ('{"object": "error", "message": "no such model"}', "no such model"),
        ('{"detail": [{"loc": ["body"], "msg": "Field required"}]}', "Field required"),
        ('{"error": {"message": "{\\"detail\\": \\"Not Found.\\"}"}}', "Not Found"),  # JSON within JSON
        ('{"code": 7}', '{"code": 7}'),
        ("<html>\nno </html>", "<html> no </html>"),
        ("[" * 100_000, "[" * 100_000),
        ("", ""),
    ],
)
def test_a_reply_is_told_by_its_innermost_words(reply: str, words: str) -> None:
    assert words_of(reply) == words


def test_key_is_a_header_and_one_that_no_header_carries_is_not_printed() -> None:
    assert bearer("sk-1", "KEY") == {"Authorization": "Bearer sk-1"}
    assert bearer("", "KEY") == {}
    for key in ("sk-secret\n", "sk-secret\u00e9"):
        with pytest.raises(ConfigError, match="KEY: holds a line break") as caught:
            bearer(key, "KEY")
        assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown", "chat"),
    [
        ("http://127.0.0.1:8000/v1/", "http://127.0.0.1:8000/v1", "http://127.0.0.1:8000/v1/chat"),
        ("HTTPS://a.example", "https://a.example", "https://a.example/chat"),
        ("http://[::1]:80/v1", "http://[::1]:80/v1", "http://[::1]:80/v1/chat"),
        (
            "https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d?api-version=2024-10-21",
            "https://r.openai.azure.com/openai/deployments/d/chat?api-version=2024-10-21",
        ),
        ("http://me:canary@a/v1?q=1", "http://a/v1?q=1", "http://a/v1/chat?q=1"),
    ],
)
def test_an_address_is_taken_apart_and_shown_without_a_login(url: str, shown: str, chat: str) -> None:
    address = parse_address(url)
    assert (str(address), address.at("/chat")) == (shown, chat)
    assert "canary" not in repr(address)


def test_a_login_is_a_header_as_the_standard_writes_it() -> None:
    # RFC 7617, section 2: Aladdin, "open sesame".
    assert parse_address("http://Aladdin:open%20sesame@a").headers == {
        "Authorization": "Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    }
    assert parse_address("http://:KEY@a").headers == {"Authorization": "Basic OktFWQ=="}
    assert parse_address("http://a").headers == {}


@pytest.mark.parametrize(
    ("url", "found"),
    [
        ("127.0.0.1:8000/v1", "does not begin with http"),
        ("localhost:8000", "does not begin with http"),
        ("a.example/v1", "does not begin with http"),
        ("ftp://a/v1", "does not begin with http"),
        ("http:///v1", "no host"),
        ("http://a:port/v1", "its port is no number from 1 to 65535"),
        ("http://a:99999/v1", "its port is no number from 1 to 65535"),
        ("http://a:0/v1", "its port is no number from 1 to 65535"),
        ("http://a/v1\n", "a space or a line break"),
        ("http://a/v1 ", "a space or a line break"),
        ("http://a/#v1", "a part after #"),
        ("http://[::1/v1", "cannot be read as a URL"),
        ("http://me:canary/x@a/v1", "its port is no number"),
        ("me:canary@a:80/v1", "does not begin with http"),
    ],
)
def test_what_is_no_address_is_an_error_that_says_what_to_type(url: str, found: str) -> None:
    with pytest.raises(ConfigError, match=f"{found}.*; expected a URL such as http://127.0.0.1:8000/v1") as caught:
        parse_address(url)
    assert "canary" not in str(caught.value)


def events_in(*chunks: bytes) -> list[ServerEvent]:
    async def source() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk

    async def read() -> list[ServerEvent]:
        return [event async for event in read_events(source())]

    return asyncio.run(read())


def test_events_are_the_same_however_their_bytes_are_cut() -> None:
    stream = (
        'event: reason\r\ndata: {"a": "\u2028\u00e9"}\r\n\r\n: comment\ndata:one\ndata: two\n\ndata: dropped\n'.encode()
    )
    expected = [ServerEvent("reason", '{"a": "\u2028\u00e9"}'), ServerEvent("message", "one\ntwo")]
    assert events_in(stream) == expected
    for place in range(1, len(stream)):
        assert events_in(stream[:place], stream[place:]) == expected


def test_line_that_never_ends_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_client, "MAX_LINE_BYTES", 10)
    assert events_in(b"data: 1\n\n" * 10) == [ServerEvent("message", "1")] * 10
    with pytest.raises(LongLineError, match="more than 10 bytes"):
        events_in(b"data: 1234", b"5")
