"""The server: rounds of the method that the run config names."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from fedclip_plugin.registry.flower_host import FedClip

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run all rounds; with `out` in the run config a report is left there."""
    strategy = FedClip(context.run_config)
    result = strategy.start(grid)
    shapes = {key: tuple(array.shape) for key, array in result.arrays.items()}
    print(f"the last state: {shapes}")
