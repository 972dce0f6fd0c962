import pytest
import torch

from clip3dreid.errors import InputError
from clip3dreid.io.devices import chosen_device


def test_auto_is_the_gpu_where_there_is_one(monkeypatch):
    for there, device in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert chosen_device("auto") == device


@pytest.mark.parametrize("name", ["cuda:63", "cudo", "meta", ""])
def test_a_device_that_is_not_here_is_refused_with_those_that_are(name):
    with pytest.raises(InputError, match=rf"device={name} cannot be used \(.+\); .*: cpu") as raised:
        chosen_device(name)
    assert "\n" not in str(raised.value)
