"""`WeightView`: what ``layer.weight`` of a layer with adapters is, for models that read it.

Some models never call a linear layer but take its weight (WavLM's attention, Mamba, fused kernels);
others ask it for its dtype or device only. So the view is a tensor that holds nothing: it has the
shape, dtype and device of ``W + Σ ΔW`` and makes that matrix when an operation wants numbers, in
backward once more. It is a tensor of the autograd graph; its gradient goes on to the adapters.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from quantlora.errors import AdapterError

#: Gives the matrix, without gradient.
Value = Callable[[], Tensor]

_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "convolution")

_READ_ONLY = (
    "{path}: the model writes to this layer's weight, which with adapters is computed and cannot "
    "be written. Merge the adapters first, leave this layer out, or turn off what writes (RWKV: "
    "config.rescale_every = 0); the frozen weight is base_layer.weight."
)


class WeightView(Tensor):
    """A read-only tensor whose numbers are made when they are wanted."""

    _value: Value
    _path: str
    _follows: bool
    # Operations arrive below autograd, which takes the view for a tensor like any other.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def like(
        meta: Tensor, device: torch.device, value: Value, path: str, follows: bool = False
    ) -> WeightView:
        """A view with the shape, strides and dtype of ``meta``.

        Args:
            follows: in a product it takes the other factor's dtype, as a packed layer does whose
                compute dtype differs from that of the activations.
        """
        size: dict[str, Any] = {"strides": meta.stride(), "dtype": meta.dtype, "device": device}
        make: Any = Tensor._make_wrapper_subclass
        view: WeightView = make(WeightView, meta.shape, **size)
        view._value, view._path, view._follows = value, path, follows
        return view

    def value(self) -> Tensor:
        """The matrix, a new tensor without gradient."""
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            return self._value()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if _writes_to_view(func, args, kwargs):
            return _unchanged(func, args, kwargs)
        if getattr(func, "is_view", False) and isinstance(args[0], WeightView):
            meta = func(_meta(args[0]), *args[1:], **kwargs)
            if isinstance(meta, Tensor):  # a transpose or a slice: no numbers needed yet
                view = args[0]
                value = lambda: func(view.value(), *args[1:], **kwargs)  # noqa: E731
                return WeightView.like(meta, view.device, value, view._path, view._follows)
        dtype = _others_dtype(func, args)

        def real(view: WeightView) -> Tensor:
            return view.value() if dtype is None or not view._follows else view.value().to(dtype)

        args, kwargs = tree_map_only(WeightView, real, (args, kwargs))
        return func(*args, **kwargs)

    # -- what looks at memory, and not through an operation

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"WeightView({self.value()!r})"

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        return _grounded(self).numpy(*args, **kwargs)

    def tolist(self) -> Any:
        return self.value().tolist()

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.value()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return cast(Any, self.value()).__reduce_ex__(protocol)

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, new: Tensor) -> None:
        raise AdapterError(_READ_ONLY.format(path=self._path))

    def contiguous(self, *args: Any, **kwargs: Any) -> Tensor:
        """Real memory: kernels ask for it in this way."""
        return self.clone()

    def data_ptr(self) -> int:
        raise AdapterError(
            f"{self._path}: a kernel wants the memory of this layer's weight, and with adapters "
            f"there is none: it is computed. Merge the adapters, or leave this layer out."
        )


def _meta(view: Tensor) -> Tensor:
    return torch.empty_strided(view.shape, view.stride(), dtype=view.dtype, device="meta")


def _others_dtype(func: Any, args: tuple[Any, ...]) -> torch.dtype | None:
    """In a product: the dtype of the factors that are no views."""
    if func.__name__.partition(".")[0] not in _PRODUCTS:
        return None
    others = (other.dtype for other in args if isinstance(other, Tensor) and not _is(other))
    return next(others, None)


def _grounded(view: WeightView) -> Tensor:
    """The matrix, where `Tensor.numpy` would give it: not while a gradient is tracked."""
    return view.value().requires_grad_(view.requires_grad)


def _writes_to_view(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    names = [argument.name for argument in func._schema.arguments if func._schema.is_mutable]
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return any(
        isinstance(given.get(argument.name), WeightView)
        for argument in func._schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )


def _unchanged(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Allow a write that changes nothing (RWKV divides by 1); refuse any other."""
    view = cast(WeightView, next(arg for arg in (*args, *kwargs.values()) if _is(arg)))
    old = view.value()
    new_args, new_kwargs = tree_map_only(WeightView, lambda arg: arg.value(), (args, kwargs))
    new = func(*new_args, **new_kwargs)
    if isinstance(new, Tensor) and new.shape == old.shape and torch.equal(new, old):
        return view
    raise AdapterError(_READ_ONLY.format(path=view._path))


def _is(value: Any) -> bool:
    return isinstance(value, WeightView)
