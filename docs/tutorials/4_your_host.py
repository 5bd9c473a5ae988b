# %% [markdown]
# # Your own host
#
# A host is whatever moves messages between a server and clients: FedML, Flower, a queue, a shared folder. It computes
# nothing itself. This one is a dictionary of bytes, and gives the same adapter as `fedclip run`, bit by bit.
#
# ## What both sides share: the options

# %%
from dataclasses import replace
from pathlib import Path

from fedclip_plugin.federation import downlink
from fedclip_plugin.federation.evaluation import score_clients
from fedclip_plugin.federation.rounds import train_clients
from fedclip_plugin.runs.host_run import HostRun, open_setup
from fedclip_plugin.settings.sources import configure
from fedclip_plugin.wire import message

options = {"rounds": 3, "target": "scan", "compress": "int8"}
config = configure(options)

# %% [markdown]
# ## A client
#
# It knows its own rows. Bytes come in, bytes go out, safetensors with a checksum, never pickle. What it keeps for its next
# round, here what int8 has rounded away, never leaves it.


# %%
kept = {}


def client(name: str, number: int, data: bytes) -> bytes:
    """Local training in round ``number``."""
    setup = open_setup(config)
    state, _ = message.unpack(data, "server")
    received = downlink.received(setup.fed, state)
    me = setup.client(name).with_kept(kept)
    (update,) = train_clients(setup.fed, received, [me], number)
    kept[name] = {**me.kept, **update.kept}
    return message.encode_update(update)


def scores(name: str, data: bytes):
    """What the client measures of the new state on its own rows."""
    setup = open_setup(config)
    state, _ = message.unpack(data, "server")
    received = downlink.received(setup.fed, state)
    mine = [setup.client(name)]
    return score_clients(setup.fed.algorithm, received, mine, setup.fed.task)[name]


# %% [markdown]
# ## The server
#
# Three calls a round, and one at the end: `open_round`, `aggregate`, `close_round`, `finish`. Screening, privacy, rules of
# aggregation, checkpoints and the files of the run are behind them.

# %%
setup = open_setup(config)
names = [c.name for c in setup.fed.clients]
server = HostRun(setup, Path("runs/mine"))
while not server.now.last:
    opened = server.open_round()
    down = message.pack(opened.sent.payload, {})
    inbox = {name: client(name, opened.number, down) for name in names}
    updates = [
        replace(message.decode_update(data, name), codec=config.wire.compress)
        for name, data in inbox.items()
    ]
    server.aggregate(opened, updates, names)
    judged = downlink.payload(setup.fed, server.judged(opened))
    new = message.pack(judged, {})
    result = server.close_round(opened, {name: scores(name, new) for name in names})
    print(result.round, f"val {result.mean_val:.3f}", result.bytes_up, "bytes up")
server.finish()

# %% [markdown]
# ## The same bits

# %%
import fedclip_plugin as fc

fc.run(**options, out="runs/embedded")
mine, embedded = (fc.load_run(f"runs/{run}").state for run in ("mine", "embedded"))
assert mine.keys() == embedded.keys()
assert all(mine[key].equal(embedded[key]) for key in mine)
print("equal")

# %% [markdown]
# `fedclip report`, `predict` and `export` work on `runs/mine` as on any run. What a host must do in all, and the tests
# that hold it to that: [contributing](../../CONTRIBUTING.md#add-a-host).
