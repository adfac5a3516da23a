from __future__ import annotations

import pytest
import torch

from tc_adapters_lens.cli.options import DTYPES, torch_device, torch_dtype
from tc_adapters_lens.errors import ConfigError


def test_every_dtype_is_one_of_torch():
    assert [torch_dtype(name) for name in DTYPES.__args__] == [torch.float32, torch.bfloat16, torch.float16]


def test_the_device_asked_for():
    assert torch_device("cpu") == torch.device("cpu")


def test_the_device_of_this_machine():
    assert torch_device(None).type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["cdua", "cuda:99", "xla"])
def test_a_device_there_is_not(name):
    with pytest.raises(ConfigError, match=f"Got '{name}'"):
        torch_device(name)
