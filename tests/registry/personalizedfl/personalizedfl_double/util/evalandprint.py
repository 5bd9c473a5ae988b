"""The tables after each round, and the checkpoint of the best."""

from __future__ import annotations

import numpy as np
import torch


def evalandprint(args, algorithm, loaders, path, best, round_number):
    train, val, test = loaders
    found = []
    for name, each in (("Train", train), ("Val", val)):
        found = [algorithm.client_eval(i, each[i]) for i in range(args.n_clients)]
        for i, (loss, acc) in enumerate(found):
            print(f" Site-{i:02d} | {name} Loss: {loss:.4f} | {name} Acc: {acc:.4f}")
    score = np.mean([acc for _, acc in found])
    if score > best[0]:
        accs = [algorithm.client_eval(i, test[i])[1] for i in range(args.n_clients)]
        for i, acc in enumerate(accs):
            print(f" Test site-{i:02d} | Epoch:{round_number} | Test Acc: {acc:.4f}")
        kept = {"best_epoch": round_number, "best_tacc": np.mean(accs)}
        for i, model in enumerate(algorithm.client_model):
            kept[f"client_model_{i}"] = model.state_dict()
        kept["server_model"] = algorithm.server_model.state_dict()
        torch.save(kept, path)
        best = (score, accs)
    return best
