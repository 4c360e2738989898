"""Graph rewriting: an exported graph with fewer and faster operators.

In: a program of torch.export. Out: a function of flat tensors, whose output is the same but for rounding.
Called by dense.py.

    constants       operators on weights alone are run once
    repetitions     equal operators on equal inputs are run once; slices of everything and dropout go
    linear layers   several of one input, side by side, become one; a product by expert is one by the
                    block-diagonal matrix; bias, tanh and ReLU join the product, which oneDNN computes
    einsum          sums over one axis are a product and a sum: einsum copies to call a batched product
    calls           torch's own functions replace operators that are looked up by name

A rewriting applies where its pattern is found; a graph without the pattern is left as it is.
"""

import sys
from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import fx
from torch.fx.graph import CodeGen

_Node = Any
"""fx.Node; the type of its arguments is a union of everything, of which a pattern knows more."""
_aten = torch.ops.aten
_ACTIVATIONS = {_aten.tanh.default: "tanh", _aten.relu.default: "relu"}
_DIRECT = {
    _aten.add.Tensor: torch.add,
    _aten.cat.default: torch.cat,
    _aten.eq.Scalar: torch.eq,
    _aten.flatten.using_ints: torch.flatten,
    _aten.linear.default: torch.nn.functional.linear,
    _aten.masked_fill.Scalar: torch.masked_fill,
    _aten.mul.Tensor: torch.mul,
    _aten.relu.default: torch.relu,
    _aten.reshape.default: torch.reshape,
    _aten.select.int: torch.select,
    _aten.softmax.int: torch.softmax,
    _aten.sum.dim_IntList: torch.sum,
    _aten.unbind.int: torch.unbind,
    _aten.unsqueeze.default: torch.unsqueeze,
}
"""Functions of the same arguments, called at half the cost of an operator that is looked up."""
_LEAST_WEIGHTS = 1024
"""Numbers of a weight matrix from which oneDNN pays: 500 rows by [132, 128] with tanh take 0.10 ms of a
core of an EPYC, and 0.32 ms as two operators of torch."""


def rewrite(program: torch.export.ExportedProgram, *, many_rows: bool) -> fx.GraphModule:
    """Return a program's module, rewritten; it takes the tensors of lists one by one.

    Args:
        many_rows: it is run on hundreds of rows, so that products by oneDNN pay; each number of rows
            costs a millisecond when it is first met.
    """
    module = program.module(check_guards=False)
    assert isinstance(module, fx.GraphModule), "a program's module is a graph"
    module.graph.set_codegen(CodeGen())  # plain tensors in, a plain tuple out
    if all(map(_is_pure, module.graph.nodes)):
        _Rewriting(module).run(uses_onednn=many_rows and _has_onednn())
    module.graph.lint()
    return module


def as_function(module: fx.GraphModule) -> Callable[..., tuple[torch.Tensor, ...]]:
    """Return a graph as a function of its tensors, whose weights are attributes of a plain object.

    A module looks its attributes up in Python, some eighty of them a call.
    """
    weights, root = SimpleNamespace(), torch.nn.Module()
    for place, node in enumerate(module.graph.nodes):
        if node.op == "get_attr":
            weight, node.target = _attribute(module, node.target), f"weight_{place}"
            setattr(weights, node.target, weight)
            setattr(root, node.target, weight)
    # Every GraphModule is of a class of its own, whose forward is the code of its graph.
    return MethodType(type(fx.GraphModule(root, module.graph)).forward, weights)


def _is_pure(node: _Node) -> bool:
    """Return whether a node computes the same from the same inputs, and changes none of them."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return True
    is_random = torch.Tag.nondeterministic_seeded in node.target.tags
    is_dropout_in_use = is_random and not (
        node.target == _aten.dropout.default and node.args[2] is False
    )
    return not (node.target._schema.is_mutable or is_dropout_in_use)


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class _Rewriting:
    """Rewrites the graph of a module in place."""

    def __init__(self, module: fx.GraphModule):
        self._module, self._graph = module, module.graph
        self._constants: dict[_Node, Any] = {}

    @torch.no_grad()
    def run(self, *, uses_onednn: bool) -> None:
        self._drop_identities()
        self._merge_repetitions()
        for node in self._calls(_aten.cat.default):
            self._merge_linears(node)
        for node in self._calls(_aten.einsum.default):
            self._replace_einsum(node)
        self._fold_constants()
        for node in [*self._calls(_aten.linear.default), *self._calls(_aten.matmul.default)]:
            if uses_onednn:
                self._use_onednn(node)
        self._graph.eliminate_dead_code()
        for node in self._graph.nodes:
            node.target = _DIRECT.get(node.target, node.target)

    def _calls(self, target: Any) -> list[_Node]:
        """Return the nodes that call an operator."""
        return [node for node in self._graph.nodes if node.target == target]

    def _replace(self, old: _Node, new: _Node) -> None:
        old.replace_all_uses_with(new)
        self._graph.erase_node(old)

    def _drop_identities(self) -> None:
        for node in self._calls(_aten.slice.Tensor):
            is_whole = len(node.args) == 4 and node.args[2:] == (0, sys.maxsize)
            if is_whole:
                self._replace(node, node.args[0])
        for node in self._calls(_aten.dropout.default):
            if node.args[2] is False:
                self._replace(node, node.args[0])

    def _merge_repetitions(self) -> None:
        found: dict[Any, _Node] = {}
        for node in list(self._graph.nodes):
            if node.op not in ("call_function", "get_attr"):
                continue
            key = (node.target, _hashable(node.args), _hashable(node.kwargs))
            if key in found:
                self._replace(node, found[key])
            else:
                found[key] = node

    def _merge_linears(self, node: _Node) -> None:
        """cat([x W1', x W2', ...], 1) is x [W1; W2; ...]'."""
        parts = node.args[0]
        is_merged = len(parts) > 1 and all(
            part.target == _aten.linear.default
            and len(part.args) == 2
            and part.args[0] is parts[0].args[0]
            and len(part.users) == 1
            for part in parts
        )
        if is_merged and node.args[1:] == (1,):
            with self._graph.inserting_before(node):
                weights = self._call(_aten.cat.default, [part.args[1] for part in parts])
                self._replace(node, self._call(_aten.linear.default, parts[0].args[0], weights))

    def _replace_einsum(self, node: _Node) -> None:
        equation, operands = node.args[0], node.args[1]
        if len(operands) != 2:
            return
        one, other = operands
        with self._graph.inserting_before(node):
            if equation in ("bh,bmh->bm", "bm,bmh->bh"):
                inner, summed = (1, 2) if equation == "bh,bmh->bm" else (2, 1)
                wide = self._call(_aten.unsqueeze.default, one, inner)
                product = self._call(_aten.mul.Tensor, wide, other)
                self._replace(node, self._call(_aten.sum.dim_IntList, product, [summed]))
            elif equation == "bkr,ksr->bks" and other.op == "get_attr":
                self._by_expert(node, one, other)

    def _by_expert(self, node: _Node, rows: _Node, weight: _Node) -> None:
        """Experts one beside the other [B, K * R], times a block-diagonal matrix [K * S, K * R]."""
        experts_KSR = _attribute(self._module, weight.target)
        num_experts, width, rank = experts_KSR.shape
        self._module.register_buffer(f"blocks_{node.name}", torch.block_diag(*experts_KSR))
        blocks = self._graph.get_attr(f"blocks_{node.name}")
        flat = self._call(_aten.reshape.default, rows, [-1, num_experts * rank])
        product = self._call(_aten.linear.default, flat, blocks)
        last, user = node, _only_user(node)
        if user is not None and user.target in _ACTIVATIONS:
            product, last = self._call(user.target, product), user
        self._replace(last, self._call(_aten.reshape.default, product, [-1, num_experts, width]))

    def _fold_constants(self) -> None:
        """Run what depends on weights alone, and keep its result as a buffer."""
        for node in list(self._graph.nodes):
            if node.op == "get_attr":
                self._constants[node] = _attribute(self._module, node.target)
            elif node.op == "call_function" and node.all_input_nodes:
                if all(given in self._constants for given in node.all_input_nodes):
                    args, kwargs = fx.map_arg((node.args, node.kwargs), self._constants.__getitem__)
                    value = node.target(*args, **kwargs)
                    if isinstance(value, torch.Tensor):
                        with self._graph.inserting_before(node):
                            self._replace(node, self._constant(node.name, value))
                    else:  # a tuple of tensors, whose elements are read by nodes behind it
                        self._constants[node] = value

    def _use_onednn(self, node: _Node) -> None:
        """x W' + b, with the activation behind it, as one operator on a packed weight."""
        rows, weight, *rest = node.args
        bias = rest[0] if rest else None
        if weight not in self._constants or (bias is not None and bias not in self._constants):
            return
        weight_OI = self._constants[weight]
        if weight_OI.dim() != 2 or weight_OI.numel() < _LEAST_WEIGHTS:
            return
        last = node
        if node.target == _aten.matmul.default:
            weight_OI = weight_OI.T.contiguous()
            user = _only_user(node)
            if user is not None and user.target == _aten.add.Tensor and user.args[0] is node:
                added = self._constants.get(user.args[1])
                if added is not None and added.dim() == 1 and not user.kwargs:
                    bias, last = user.args[1], user
        activation = "none"
        user = _only_user(last)
        if user is not None and user.target in _ACTIVATIONS:
            activation, last = _ACTIVATIONS[user.target], user
        with self._graph.inserting_before(last):
            packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI, None)
            given: tuple[Any, ...] = (
                rows,
                self._constant(f"packed_{node.name}", packed),
                bias,
                activation,
                [],
                "",
            )
            self._replace(last, self._call(torch.ops.mkldnn._linear_pointwise.default, *given))

    def _constant(self, name: str, value: torch.Tensor) -> _Node:
        """Return the node of a new buffer, at the graph's place of insertion."""
        self._module.register_buffer(f"constant_{name}", value)
        node = self._graph.get_attr(f"constant_{name}")
        self._constants[node] = value
        return node

    def _call(self, target: Any, *args: Any) -> _Node:
        return self._graph.call_function(target, args)


def _only_user(node: _Node) -> _Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _attribute(module: torch.nn.Module, path: Any) -> torch.Tensor:
    found: Any = module
    for name in path.split("."):
        found = getattr(found, name)
    return found.detach()


def _hashable(given: Any) -> Any:
    if isinstance(given, dict):
        return tuple((name, _hashable(value)) for name, value in given.items())
    if isinstance(given, list | tuple):
        return tuple(map(_hashable, given))
    return type(given), given
