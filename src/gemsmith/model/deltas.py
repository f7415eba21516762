"""The low-rank deltas of a network as the compiled decode step takes them, looked at before every token."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from gemsmith.kernels.decode_step import DecodeStep, Delta, can_take
from gemsmith.model.linear import Linear, LowRank

# Of each layer: the module that holds a linear and the linear's name there, by the names of decode_step.Layer.matrices.
Places = Sequence[Mapping[str, tuple[nn.Module, str]]]


class CurrentStep:
    """A compiled step whose network may be given other deltas between two tokens.

    Numbers written into a delta's tensors are seen, for the step reads them where they lie. So are deltas and tensors
    that come, go or take another's place.
    """

    def __init__(self, step: DecodeStep, places: Places, *, dtype: torch.dtype) -> None:
        self._step, self._dtype = step, dtype
        self._n_layers = len(places)
        self._places = [
            (index, name, holder._modules, key)
            for index, layer in enumerate(places)
            for name, (holder, key) in layer.items()
        ]
        self._linears = self._now()
        self._seen: tuple[Sequence[object], ...] | None = None
        self._is_suitable = False

    def get(self) -> DecodeStep | None:
        """Return the step with the deltas there are now; None where the modules have to run one by one."""
        seen = self._look()
        if seen != self._seen:
            self._seen = seen
            self._is_suitable = self._attach()
        return self._step if self._is_suitable else None

    def _look(self) -> tuple[Sequence[object], ...]:
        """Return what differs where a linear or its delta is another, or the delta's numbers lie elsewhere.

        Nothing else comes to lie at the address of a tensor while the step has it. This is done for every token.
        """
        linears = self._now()
        deltas = [None if x is None else x._modules.get("delta") or vars(x).get("delta") for x in linears]
        known = [x for x in deltas if type(x) is LowRank]
        held = [x for delta in known for part in (delta._parameters, delta._buffers) for x in part.values()]
        tensors = [x for x in held if x is not None]
        return linears, deltas, [x.data_ptr() for x in tensors], [x.numel() for x in tensors]

    def _now(self) -> list[nn.Module | None]:
        return [parts.get(key) for _, _, parts, key in self._places]

    def _attach(self) -> bool:
        """Tell the step which deltas there are; False where it cannot take them, or a linear is another one."""
        found: list[dict[str, Delta]] = [{} for _ in range(self._n_layers)]
        for (index, name, parts, key), known in zip(self._places, self._linears, strict=True):
            linear = parts.get(key)
            if linear is not known or not isinstance(linear, Linear):
                return False
            if linear.delta is not None:
                delta = _as_stored(linear, self._dtype)
                if delta is None:
                    return False
                found[index][name] = delta
        self._step.attach(found)
        return True


def _as_stored(linear: Linear, dtype: torch.dtype) -> Delta | None:
    """Return a linear's delta; None where the kernel does not know it, or the modules would refuse it."""
    low_rank = linear.delta
    if type(low_rank) is not LowRank or is_changed(low_rank):
        return None
    names = [name for name, _ in (*low_rank.named_parameters(), *low_rank.named_buffers())]
    if names != ["lora_a", "lora_b", "scale"]:
        return None
    a, b, scale = low_rank.lora_a.detach(), low_rank.lora_b.detach(), low_rank.scale.detach()
    return Delta(a, b, scale) if _fits(linear, a, b, scale) and a.dtype == b.dtype == dtype else None


def _fits(linear: Linear, a: Tensor, b: Tensor, scale: Tensor) -> bool:
    if a.ndim != 3 or not a.numel() or not all(can_take(x) for x in (a, b, scale)):
        return False
    n_adapters, rank, _ = a.shape
    shapes = (n_adapters, rank, linear.d_in), (n_adapters, linear.d_out, rank), (n_adapters,)
    return (a.shape, b.shape, scale.shape) == shapes


def is_changed(module: nn.Module) -> bool:
    """Tell whether a module does something else than its class does."""
    return bool(module._forward_hooks or module._forward_pre_hooks) or "forward" in vars(module)
