"""What people put into the AWS variables, told without a client (the client refuses the same: test_artifacts)."""

import pytest

from reasongenrm.store.s3_settings import wrong_settings


def test_what_can_be_used_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "https://s3.example:9000/path")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a/b+c=")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    assert wrong_settings() == []


def test_every_wrong_variable_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "s3.example:9000")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.example:9000")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIA\r\n")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary\n")
    said = wrong_settings()
    assert [text.split()[0] for text in said] == ["AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]
    assert "Type AWS_ENDPOINT_URL_S3=http://s3.example:9000, or https://." in said[0]
    assert not [text for text in said if "canary" in text or "AKIA" in text]
