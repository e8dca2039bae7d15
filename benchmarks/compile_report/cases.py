"""The specialisations of the Triton kernels that `compile_report` compiles, and their arguments."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from diffattn.kernels.backends.triton.config import Launch, launch_for, specialized_for

KERNELS = ("forward", "specialized", "dq", "dkv")
STRIDES = ("i64",) * 3
LEVEL = ("*i32", STRIDES, "*i16", STRIDES, "i32")
TYPES = {
    "scale": "fp32", "group": "i32", "rows": "i32", "start": "i32", "level_rows": "i32", "order": "*i32",
    "first": "*i64", "counts": "*i32", "visitors": "*i32", "bits": "*i64", "indices": "*i16", "kv_rows": "i32",
} | dict.fromkeys(("logw", "lse", "grad_lse", "delta"), "*fp32")  # fmt: skip
# Arguments that nothing is known about; the launcher finds the rest to be multiples of 16.
ODD = {"group", "logw_strides", "order_strides", "lists_strides", "counts_strides", "indices_strides"}


class Case(NamedTuple):
    """One specialisation of a kernel."""

    kernel: str
    arch: str
    dim: int
    dtype: str
    block_q: int
    tiles: tuple[int, ...]

    @property
    def launch(self) -> Launch:
        """The launch that the table gives it."""
        itemsize = 4 if self.dtype == "fp32" else 2
        at = (self.arch, self.dim, itemsize, self.block_q, max(self.tiles))
        return specialized_for(*at) if self.kernel == "specialized" else launch_for(*at, self.kernel)


def cases(archs: list[str], quick: bool = False) -> Iterator[Case]:
    """Every launch of the table once, with log-weights; `quick`: one of forward, and of all on sm_90."""
    for arch in archs:
        if quick:
            kernels = KERNELS if arch == "sm_90" else ("forward",)
            yield from (Case(kernel, arch, 128, "bf16", 128, (64,)) for kernel in kernels)
            continue
        seen = set()
        for case in _all_cases(arch):
            # 16-row tiles are packed, which is another kernel
            at = (case.kernel, case.dim, case.dtype, case.launch, min(case.tiles) < 64)
            if case.launch is not None and at not in seen:
                seen.add(at)
                yield case


def _all_cases(arch: str) -> Iterator[Case]:
    for kernel in KERNELS:
        for dim in (64, 128, 256):
            for plan in ((128, (128,)), (128, (64,)), (64, (64,))):
                yield Case(kernel, arch, dim, "bf16", *plan)
            # One table for all architectures, and no matrix units: one stands for them.
            if kernel != "specialized" and arch == "sm_80":
                yield Case(kernel, arch, dim, "fp32", 64, (64,))
        if kernel != "specialized":
            yield Case(kernel, arch, 128, "bf16", 128, (16,) if kernel == "dkv" else (64, 16, 4))


def kernel_of(case: Case) -> tuple:
    from diffattn.kernels.backends.triton import dkv as triton_dkv
    from diffattn.kernels.backends.triton import dq as triton_dq
    from diffattn.kernels.backends.triton import forward as triton_forward
    from diffattn.kernels.backends.triton import specialized as triton_specialized
    from diffattn.kernels.backends.triton.common import query_constants

    if case.kernel == "dkv":
        constants = triton_dkv.key_constants(case.dim, case.block_q, case.tiles[0], True, case.launch)
        return triton_dkv.key_gradient_kernel, constants
    if case.kernel == "specialized":
        constants = triton_specialized.specialized_constants(case.dim, case.block_q, case.tiles[0], True, case.launch)
        return triton_specialized.specialized_kernel, constants
    constants = query_constants(case.dim, case.block_q, case.tiles, (True,) * len(case.tiles), case.launch)
    kernels = {"forward": triton_forward.attention_kernel, "dq": triton_dq.query_gradient_kernel}
    return kernels[case.kernel], constants


def signature_of(case: Case, names: list[str], constants: dict) -> dict:
    rows = ("query", "key", "value", "out")
    types = {name: f"*{case.dtype}" for name in (*rows, *(f"grad_{row}" for row in rows))}
    types |= TYPES | {"levels": (LEVEL,) * len(case.tiles)} | dict.fromkeys(constants, "constexpr")
    return {name: types.get(name, STRIDES) for name in names}


def divisible(signature: dict) -> dict[tuple[int, ...], list]:
    """What the launcher finds out about real tensors: pointers, first rows and strides are multiples of 16."""

    def paths(kind, at):
        if isinstance(kind, tuple):
            for index, inner in enumerate(kind):
                yield from paths(inner, (*at, index))
        elif kind.startswith("*") or kind in ("i32", "i64"):
            yield at

    found = (paths(kind, (index,)) for index, (name, kind) in enumerate(signature.items()) if name not in ODD)
    return {path: [["tt.divisibility", 16]] for some in found for path in some if len(path) < 4}
