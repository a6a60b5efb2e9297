import torch
from mmengine.hooks import Hook
from mmengine.model import BaseTTAModel, is_model_wrapper

from ..inference import DTYPES, optimize_for_inference
from ..registry import HOOKS
from ..unwrap import unwrap


@HOOKS.register_module()
class OptimizeForInferenceHook(Hook):
    """Tests with what ``mmdet_ddetr.optimize_for_inference`` makes of the runner's model; afterwards that is back.

    Args:
        dtype: name of the type to compute in: float32, bfloat16 or float16.
    """

    priority = 'LOWEST'  # after hooks that exchange weights

    def __init__(self, dtype: str = 'float32'):
        if dtype not in DTYPES:
            raise ValueError(f'dtype must be one of {", ".join(DTYPES)}, got {dtype!r}')
        self.dtype = getattr(torch, dtype)

    def before_test_epoch(self, runner) -> None:
        optimised = optimize_for_inference(unwrap(runner.model), self.dtype)
        outer = runner.model
        while is_model_wrapper(outer):
            outer = outer.module
        self.place = (outer, 'module') if isinstance(outer, BaseTTAModel) else (runner, 'model')
        self.original = getattr(*self.place)
        setattr(*self.place, optimised)

    def after_test_epoch(self, runner, metrics: dict | None = None) -> None:
        setattr(*self.place, self.original)
