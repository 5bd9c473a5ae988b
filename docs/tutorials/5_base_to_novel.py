# %% [markdown]
# # Base to novel: classes that nobody trained on
#
# CLIP knows classes by their names, so a federation can be asked for classes that no client has. CoOp's protocol trains
# on the first half of the classes, *base*, and scores the second half, *novel*, as well. `--classes base` is all it takes.

# %%
import fedclip_plugin as fc

for method, rounds in (("fedclip", 20), ("fedtpg", 2)):
    summary = fc.run(
        classes=["base"], target="scan", alg=method, rounds=rounds, out=f"runs/{method}"
    )
    scores = summary["base_to_novel"]["result"]
    print(f"{method:8} base {scores['base']:.3f}, novel {scores['novel']:.3f}")

# %% [markdown]
# Of a client, *local* are its test images among the classes it holds, *base* among all that were trained on, and *novel*
# those of the unseen classes among these; the harmonic mean punishes who is good at one and bad at the other. Zero-shot is
# what training has to keep.

# %%
# !fedclip report runs/fedclip runs/fedtpg

# %% [markdown]
# A method that knows classes by rows alone has no novel column, and says so:

# %%
# !fedclip run --alg gda --classes base --target scan --out runs/gda

# %% [markdown]
# Classes of your own, in words, for a finished run: `fedclip predict RUN IMAGE --classes ...` and `fedclip evaluate`.
# [More on classes](../data.md#classes), [which method knows classes by their names](../methods.md).
