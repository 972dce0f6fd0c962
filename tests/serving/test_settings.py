import pytest

from clip3dreid.errors import InputError
from clip3dreid.serving.settings import ServeSettings


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.3.2.1", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.168.1.5", False),
        ("localhost.example.org", False),
    ],
)
def test_only_this_machines_own_addresses_are_local(host: str, local: bool) -> None:
    assert ServeSettings(host=host).is_local is local


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"port": 70_000}, "port=70000 must be a whole number from 0 to 65535"),
        ({"megabytes": 0}, "megabytes=0 must be a number above 0"),
        ({"pictures": 0}, "pictures=0 must be a whole number, 1 or more"),
        ({"queue": -1}, "queue=-1"),
        ({"host": ""}, "host= is no address"),
        ({"host": "http://localhost"}, "host=http://localhost is no address"),
    ],
)
def test_what_cannot_be_is_refused(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        ServeSettings(**wrong)  # type: ignore[arg-type]
