"""The code that torch makes of a compiled training step, for a card that is not there.

    python tests/gpu/step_bytes.py flowers256 --batch 32 --card sm_89      (starts this script as it must be started)

Prints JSON: for the forward and the backward pass the launches of Triton kernels, calls of other kernels by name, bytes that
inductor counts, and what is saved between the passes. With --out the code itself is written beside it.
"""

import argparse
import collections
import json
import re
from pathlib import Path

import pretended

CARD = pretended.pretend()

import torch  # noqa: E402
from torch._dynamo.backends.common import aot_autograd  # noqa: E402
from torch._functorch.partitioners import min_cut_rematerialization_partition  # noqa: E402
from torch._inductor import config  # noqa: E402
from torch._inductor.compile_fx import (  # noqa: E402
    _recursive_joint_graph_passes,
    _recursive_post_grad_passes,
    fake_tensor_prop,
    view_to_reshape,
)
from torch._inductor.debug import DebugContext  # noqa: E402
from torch._inductor.decomposition import select_decomp_table  # noqa: E402
from torch._inductor.fx_passes import joint_graph  # noqa: E402
from torch._inductor.graph import GraphLowering  # noqa: E402
from torch._inductor.virtualized import V  # noqa: E402
from torch._subclasses import FakeTensorMode  # noqa: E402
from torch._subclasses.fake_tensor import unset_fake_temporarily  # noqa: E402

from hdit_cli.engine.model import DTYPES, build_network, build_task  # noqa: E402
from hdit_cli.engine.sampling.compiled import Compiled  # noqa: E402
from hdit_cli.models.attention import dispatch  # noqa: E402
from hdit_cli.models.layers import seed_dropout  # noqa: E402
from hdit_cli.recipe import load_recipe  # noqa: E402

config.fx_graph_cache = config.benchmark_kernel = config.shape_padding = False
config.compile_threads = 1
config.joint_graph_constant_folding = False  # it computes on the device
joint_graph.lazy_init = lambda device=None: (
    None
)  # its patterns are traced on real tensors, and none of them is in a step


class Code:
    """A backend of `torch.compile` that keeps inductor's code, and what it says of it, in the place of running it."""

    def __init__(self):
        self.passes = {}
        self.code = {}
        self.backend = aot_autograd(
            fw_compiler=self._compiler("forward"),
            bw_compiler=self._compiler("backward"),
            inference_compiler=self._compiler("inference"),
            partition_fn=partition,
            decompositions=select_decomp_table,
            keep_inference_input_mutations=True,
        )

    def _compiler(self, name):
        def compile_graph(graph, inputs):
            with unset_fake_temporarily():
                return self._generate(name, graph, inputs)

        return compile_graph

    def _generate(self, name, graph, inputs):
        view_to_reshape(graph)
        mode = fake_tensor_prop(graph, inputs)
        with V.set_fake_mode(mode):
            _recursive_post_grad_passes(graph, is_inference=name == "inference")
        lowering = GraphLowering(
            graph,
            example_inputs=inputs,
            shape_env=mode.shape_env,
            is_backward=name == "backward",
            is_inference=name == "inference",
        )
        with V.set_graph_handler(lowering), V.set_fake_mode(mode), V.set_debug_handler(DebugContext()):
            lowering.run(*inputs)
            code, _ = lowering.codegen()
            total, _, _ = lowering.count_bytes()
        self.code[name] = getattr(code, "value", code)
        results = next(node for node in graph.graph.nodes if node.op == "output").args[0]
        self.passes[name] = {
            "bytes": total,
            "triton_launches": len(re.findall(r"^\s+triton_\w+\.run\(", self.code[name], re.MULTILINE)),
            "others": dict(
                collections.Counter(re.findall(r"(extern_kernels\.\w+|torch\.ops\.[\w.]+)\(", self.code[name]))
            ),
            "saved": saved(results) if name == "forward" else 0,
        }
        return boxed(results)


def partition(graph, inputs, **options):
    """As inductor cuts a training step into forward and backward."""
    _recursive_joint_graph_passes(graph)
    return min_cut_rematerialization_partition(graph, inputs, **options)


def saved(results):
    """Bytes of what a forward pass keeps, weights and other inputs apart."""
    values = [each.meta["val"] for each in results if hasattr(each, "meta") and each.op != "placeholder"]
    return sum(each.numel() * each.element_size() for each in values if isinstance(each, torch.Tensor))


def boxed(results):
    """A graph's stand-in: results of the right shapes."""

    def run(inputs):
        inputs.clear()
        return [like(each.meta.get("val")) if hasattr(each, "meta") else each for each in results]

    run._boxed_call = True
    return run


def like(value):  # a tensor of the fake mode that is on now
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device=value.device)


def step(recipe, *, batch, code):
    """Forward and backward of a task's losses, compiled as training compiles them."""
    classes = 10 if recipe.model.classes == "data" else int(recipe.model.classes)
    torch.set_default_dtype(DTYPES[recipe.train.precision])  # fake parameters cannot be made others
    with FakeTensorMode():
        with torch.device("cuda"):
            task = build_task(build_network(recipe, classes=classes), recipe).train()
            keys, like = torch.zeros(batch, dtype=torch.int32), torch.zeros(())
        seed_dropout(task.network, keys)
        drawn = task.blank(batch, recipe.model.size, like=like, told={})
        task.losses = Compiled(task.losses, graphs=1, switch="", backend=code.backend).run
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=recipe.train.precision == "bf16"):
            each = task(drawn)
        each.loss.mean().backward()


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--attention", help="a backend by name, in the place of the one that is chosen")
    parser.add_argument("--out", type=Path, help="folder for the code")
    arguments = parser.parse_args()
    if arguments.attention:
        dispatch.choose = lambda request: arguments.attention
    code = Code()
    step(load_recipe(arguments.recipe, arguments.changes), batch=arguments.batch, code=code)
    if arguments.out:
        for name, text in code.code.items():
            (arguments.out / f"{name}.py").write_text(text)
    print(json.dumps({"card": CARD.name, "passes": code.passes}))


if __name__ == "__main__":
    main()
