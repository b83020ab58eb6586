"""What a training cannot do, said before it begins."""

from __future__ import annotations

from accelerate import Accelerator
from accelerate.utils import DistributedType, DynamoBackend

_SHARDED = (DistributedType.FSDP, DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM)
"""Ways to train in which no process has all weights."""


def require_supported(accelerator: Accelerator) -> None:
    """Check that the machine can do what the recipe asks for, and the loops what the launcher asks for.

    Raises:
        ValueError: half precision without a GPU, training in shards, or a compiler that the launcher chose.
    """
    if accelerator.distributed_type in _SHARDED:
        raise ValueError(
            f"expected every process to hold the whole network, got {accelerator.distributed_type.value}, "
            "with which none has all averaged weights; launch with torchrun, or accelerate launch --multi_gpu"
        )
    if accelerator.mixed_precision == "fp16" and accelerator.device.type == "cpu":
        raise ValueError("expected a GPU for training.mixed_precision fp16, got a CPU; set it to bf16 or no")
    backend = accelerator.state.dynamo_plugin.backend
    if backend != DynamoBackend.NO:
        raise ValueError(
            f"expected training.compile in the recipe, got the dynamo backend {backend.value} from the "
            "launcher; leave that to the recipe"
        )
