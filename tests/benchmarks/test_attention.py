"""Comparison of attention kernels."""

import pytest
import torch
from torch.nn.attention import SDPBackend

from benchmarks import attention


def wrong_attention(q, k, v, bias):
    return 1.1 * attention.explicit_attention(q, k, v, bias)


def without_bias_gradient(q, k, v, bias):
    return attention.explicit_attention(q, k, v, bias.detach())


@pytest.fixture
def inputs():
    torch.manual_seed(0)
    q, k, v = (torch.randn(4, 3, 9, 32, requires_grad=True) for _ in range(3))
    return q, k, v, torch.randn(2, 3, 9, 9, requires_grad=True)


@pytest.mark.parametrize("backend", [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH])
def test_sdpa_equals_explicit_attention(backend, inputs):
    detached = [x.detach() for x in inputs]  # flash attention has no gradient for the bias
    expected = attention.explicit_attention(*detached)
    torch.testing.assert_close(attention.sdpa(backend)(*detached), expected, atol=1e-5, rtol=1e-5)


def test_kernels_that_cannot_be_compared_are_reported(inputs):
    expected = attention.explicit_attention(*inputs)
    assert attention.check_output(attention.explicit_attention, inputs, expected) is None
    assert attention.check_output(wrong_attention, inputs, expected).startswith("wrong output: differs by")
    cudnn = attention.sdpa(SDPBackend.CUDNN_ATTENTION)
    assert attention.check_output(cudnn, inputs, expected).startswith("not available: No viable backend")
    assert attention.check_gradient(attention.explicit_attention, inputs) is None
    assert attention.check_gradient(without_bias_gradient, inputs) == "no gradient for the bias"


def test_command_prints_forward_and_training_time_of_each_kernel(monkeypatch, capsys):
    monkeypatch.setattr(torch, "compile", lambda function: without_bias_gradient)
    monkeypatch.setattr(attention, "flex_attention", lambda: wrong_attention)
    monkeypatch.setattr(attention, "WINDOW_TOKENS", (4,))
    attention.main(["--batch-size", "1", "--rounds", "1", "--threads", "1", "--device", "cpu"])
    title, *lines = capsys.readouterr().out.splitlines()
    assert title == "192 windows of 4 tokens, 3 heads of 32 channels, torch.float32"
    failed = {line[:22].strip(): line[23:] for line in lines if " ms " not in line}
    assert failed["explicit, compiled"] == "no gradient for the bias"
    assert failed["FlexAttention"].startswith("wrong output: differs by")
    assert failed["SDPA cudnn"].startswith("not available: No viable backend")
    assert failed["SDPA flash"].startswith("no backward pass")
    timed = {line[:22].strip(): line[23:].split() for line in lines if " ms " in line}
    assert {"SDPA math", "explicit", "SDPA flash", "explicit, compiled"} <= set(timed)
    for name, (_, forward, unit, _, training, *_) in timed.items():
        assert float(forward) > 0 and unit == "ms"
        assert training == "-" if name in failed else float(training) > 0


def test_invalid_option_is_user_error():
    with pytest.raises(ValueError, match="--batch-size 0 must be at least 1"):
        attention.main(["--batch-size", "0"])
