# %% [markdown]
# # A new method in 40 lines
#
# A method is one class: what the first state is, what a client makes of it, and how it predicts. Options of its own are
# the fields of a frozen dataclass. Everything else, data, rounds, compression, privacy, resuming, tables, comes with it.
#
# This one averages the features of each class: *federated prototypes*. A client sends the sums of its features and how
# many rows it has of each class, once; the server adds them up. `pull` draws the prototypes towards the captions.

# %%
from dataclasses import dataclass

import torch.nn.functional as F

import fedclip_plugin as fc
from fedclip_plugin.config.fields import Section, option


@dataclass(frozen=True)
class PrototypesParams(Section):
    """Options of --alg prototypes."""

    pull: float = option(0.0, "share of the caption in a prototype", within="[0, 1]")


class Prototypes(fc.Algorithm):
    """Class means of normalised features, in one round."""

    name = "prototypes"
    Params = PrototypesParams
    defaults = {"rounds": 1, "weighting": "examples"}
    text_at_server = True

    def init(self, task):
        classes, dim = task.text.shape
        return {
            "sums": task.text.new_zeros(classes, dim),
            "counts": task.text.new_zeros(classes),
        }

    def local_train(self, state, client, task, round_number):
        x, y = F.normalize(client.train.x, dim=1), client.train.y
        rows = F.one_hot(y, len(task.text)).to(x.dtype)  # (N, C)
        n = max(1, len(x))
        mine = {"sums": rows.T @ x / n, "counts": rows.sum(0) / n}
        return fc.ClientUpdate(client.name, mine, num_examples=len(x))

    def predict(self, state, x, task):
        pull = task.params.pull
        prototypes = F.normalize(state["sums"], dim=1)
        prototypes = (1 - pull) * prototypes + pull * task.text
        return F.normalize(x, dim=1) @ F.normalize(prototypes, dim=1).T


fc.ALGORITHMS.register("prototypes", Prototypes)

# %% [markdown]
# That is all. The option is there at once, as `--prototypes-pull`, `[prototypes] pull` in TOML, `FEDCLIP_PROTOTYPES_PULL`
# and the keys of the hosts:

# %%
for pull in (0.0, 0.3):
    summary = fc.run(alg="prototypes", prototypes_pull=pull, target="scan")
    zero_shot, result = summary["zero_shot"]["target"], summary["result"]["target"]
    print(f"pull {pull}: {result:.3f} on the unseen domain, zero-shot {zero_shot:.3f}")

# %% [markdown]
# A value out of its range is refused in one line, like those of the options of the package:

# %%
try:
    fc.run(alg="prototypes", prototypes_pull=2.0)
except fc.ConfigError as error:
    print(error)

# %% [markdown]
# It goes with what the package has: here 12 clients with skewed labels, updates as int8.

# %%
skewed = fc.run(
    alg="prototypes", partition="dirichlet", clients=12, alpha=0.1, target="scan",
    compress="int8",
)  # fmt: skip
print(f"{skewed['result']['target']:.3f}", skewed["communication"]["bytes_up"], "bytes")

# %% [markdown]
# ## In a package of your own
#
# An entry point makes the method known wherever the package is installed, in `fedclip run` and in every host:
#
# ```toml
# [project.entry-points."fedclip_plugin.algorithms"]
# prototypes = "my_package:Prototypes"
# ```
#
# [The base class](../reference/algorithms.md) has more hooks; [contributing](../../CONTRIBUTING.md) tells how a method
# becomes part of this package.
