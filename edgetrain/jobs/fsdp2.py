"""trainer.strategy=fsdp2: parameters, gradients and optimiser state in shards over all processes (FSDP2).

`Task.configure_model` shards the model; a checkpoint is one whole file, as it is without sharding.
"""

from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry


class FSDP2(ModelParallelStrategy):
    """Lightning's strategy of torch's `fully_shard` with every process in the one data-parallel group."""

    def __init__(self) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False)

    def setup_environment(self) -> None:
        self._data_parallel_size = self.world_size
        super().setup_environment()


StrategyRegistry.register("fsdp2", FSDP2, description="FSDP2 over all processes")
