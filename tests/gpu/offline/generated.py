"""Inductor's code for a graph, in the place of running it, and what is said of it. Only under `pretended.pretend()`."""

import collections
import re

import torch
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor import config
from torch._inductor.compile_fx import (
    _recursive_joint_graph_passes,
    _recursive_post_grad_passes,
    fake_tensor_prop,
    view_to_reshape,
)
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.fx_passes import joint_graph
from torch._inductor.graph import GraphLowering
from torch._inductor.virtualized import V
from torch._subclasses.fake_tensor import unset_fake_temporarily

from hdit_cli.models.attention import flex

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
        self.parts = {}
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
            total, parts, _ = lowering.count_bytes()
        self.code[name] = getattr(code, "value", code)
        self.parts[name] = sorted(((size, origin(node)) for node, size in parts), reverse=True)
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


def origin(node):
    """What a node of the schedule is made of."""
    nodes = [each.node for each in node.get_nodes() if each.node is not None]
    return " ".join(dict.fromkeys(str(origin.target) for each in nodes for origin in each.get_origins()))


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


def plans_made(maps):
    """FlexAttention's plans of maps (height, width, kernel), as fake tensors: while it traces dynamo would make real ones."""
    made = {each: usual_plan(*each, torch.device("cuda", 0)) for each in maps}
    flex.blocks = lambda height, width, kernel, device: made[height, width, kernel]


usual_plan = flex.blocks
