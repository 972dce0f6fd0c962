import torch

from clip3dreid.inference.late import Late, at_once


def test_what_is_on_the_cpu_is_there_at_once() -> None:
    assert at_once(torch.device("cpu"))
    assert not at_once(torch.device("cuda"))
    values = [torch.arange(3.0), torch.tensor(7)]
    late = Late(values)
    assert late.there
    assert all(torch.equal(a, b) for a, b in zip(late.read(), values, strict=True))
