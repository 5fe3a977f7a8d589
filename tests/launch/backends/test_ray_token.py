import pytest

from zerofleet.launch.backends.ray_token import Token, find_token
from zerofleet.trainer.errors import UserError

SECRET = "s3cr3t-of-the-cluster"


def test_it_is_looked_for_where_ray_looks_and_in_its_order(tmp_path, monkeypatch):
    assert find_token() == Token("", "none was found")
    default = tmp_path / "home/.ray/auth_token"
    default.parent.mkdir(parents=True)
    default.write_text("of-the-home\n")
    assert find_token().value == "of-the-home"
    named = tmp_path / "named"
    named.write_text("of-the-file\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(named))
    assert find_token().value == "of-the-file"
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-variable")
    assert find_token() == Token("of-the-variable", "RAY_AUTH_TOKEN")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert find_token().value == ""


def test_a_file_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "absent"))
    with pytest.raises(UserError, match="RAY_AUTH_TOKEN_PATH .*absent: No such file"):
        find_token()


@pytest.mark.parametrize("text", [f"{SECRET}\nof two lines", f"{SECRET} with blanks", f"{SECRET}-ü"])
def test_what_no_header_can_hold_is_refused_without_showing_it(monkeypatch, text):
    monkeypatch.setenv("RAY_AUTH_TOKEN", text)
    with pytest.raises(UserError) as refused:
        find_token()
    assert SECRET not in str(refused.value) and "RAY_AUTH_TOKEN" in str(refused.value)


def test_its_text_form_does_not_hold_it():
    token = Token(SECRET, "RAY_AUTH_TOKEN")
    assert SECRET not in f"{token} {token!r} {token.refused(403)} {token.refused(401)}"
