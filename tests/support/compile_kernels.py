"""Compile the kernels of window attention without a GPU and print registers, spills and matrix instructions as JSON.

Usage: python -m tests.support.compile_kernels CAPABILITY ... (such as 80 90 100), without TRITON_INTERPRET.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from swin_lightning.models import window_attention_triton as kernels

FLOAT32 = ("bias", "dbias", "dscale", "head_scale")
HALF = ("qkv", "out", "grad", "dqkv")
WINDOWS = ((4, 4), (5, 5), (6, 6), (7, 7), (8, 8))
HEAD_DIM = 32


def compile_kernel(kernel, window, dtype, cosine, capability):
    """Registers, bytes of spills, and tensor core instructions of a kernel as it is launched."""
    tokens = window[0] * window[1]
    constants = {"h": window[0], "w": window[1], "D": HEAD_DIM, "EPS": kernels.EPS, "samples": None}
    constants |= {"BLOCK": kernels.block_size(tokens)} | ({} if cosine else {"head_scale": None})
    types = dict.fromkeys(FLOAT32, "*fp32") | dict.fromkeys(HALF, f"*{dtype}") | {"scale": "fp32"}
    types |= dict.fromkeys(constants, "constexpr")
    signature = {name: types.get(name, "i32") for name in kernel.arg_names}
    index = {name: (i,) for i, name in enumerate(kernel.arg_names)}
    source = ASTSource(
        kernel,
        signature,
        constexprs={index[name]: value for name, value in constants.items() if name in index},
        attrs={index[name]: [["tt.divisibility", 16]] for name, kind in signature.items() if kind.startswith("*")},
    )
    options = kernels.launch_options(tokens, cosine, capability // 10, kernel is kernels._backward)
    ptx = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["ptx"]
    ptxas = Path(nvidia.__file__).parent / "bin" / ("ptxas-blackwell" if capability >= 100 else "ptxas")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.ptx"
        path.write_text(ptx)
        arch = re.search(r"\.target (\w+)", ptx)[1]
        command = [str(ptxas), "-v", f"-arch={arch}", str(path), "-o", str(path.with_suffix(".cubin"))]
        report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    return {
        "kernel": kernel.__name__.strip("_"),
        "window": window,
        "dtype": dtype,
        "cosine": cosine,
        "capability": capability,
        "registers": int(re.search(r"Used (\d+) registers", report)[1]),
        "spilled": sum(int(number) for number in re.findall(r"(\d+) bytes spill", report)),
        "tensor_cores": len(re.findall(r"mma\.sync|wgmma\.mma_async|tcgen05\.mma", ptx)),
    }


def main():
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    rows = []
    for capability in map(int, sys.argv[1:]):
        for window in WINDOWS:
            for name, dtype in dtypes.items():
                for cosine in (False, True):
                    if kernels.is_supported(dtype, window, HEAD_DIM, cosine, capability // 10):
                        for kernel in (kernels._forward, kernels._backward):
                            rows.append(compile_kernel(kernel, window, name, cosine, capability))
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
