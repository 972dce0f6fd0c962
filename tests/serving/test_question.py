import base64

import pytest

from clip3dreid.errors import InputError
from clip3dreid.serving.question import Upload, data_url, uploads_of


def test_pictures_are_read_out_of_a_question() -> None:
    url = data_url(b"\x00picture", "image/png")
    assert url == f"data:image/png;base64,{base64.b64encode(bytes([0]) + b'picture').decode()}"
    asked = {"pictures": [{"name": "a.png", "data": url}, {"name": "b" * 999, "data": url, "path": "b.png"}]}
    assert uploads_of(asked) == [
        Upload("a.png", b"\x00picture", None),
        Upload("b" * 200, b"\x00picture", "b.png"),
    ]
    assert uploads_of(None) == []


@pytest.mark.parametrize(
    "payload",
    ["text", 7, ["a"], {"pictures": "a"}, {"pictures": [{}]}, {"pictures": [{"name": "a", "data": "a,!!"}]}],
)
def test_a_question_in_another_form_is_refused(payload: object) -> None:
    with pytest.raises(InputError, match="load the page anew"):
        uploads_of(payload)
