"""Clients of a data set without domains; as old as NumPy 1.23."""

from __future__ import annotations

import os

import numpy as np


class Partition:
    def __init__(self, data, indices):
        self.data = data
        self.indices = indices

    def __len__(self):
        return len(self.indices)

    def __getitem__(self, index):
        return self.data[self.indices[index]]


def split(args, data):
    """Train, validation and test rows of every client, kept in ./split/."""
    folder = f"./split/{args.dataset}{args.datapercent}"
    os.makedirs(folder, exist_ok=True)
    file = f"{folder}/{args.n_clients}.npy"
    if not os.path.exists(file):
        order = np.random.RandomState(1).permutation(len(data))
        parts = []
        for i in range(args.n_clients):
            own = order[i :: args.n_clients].tolist()
            train, val = np.int(len(own) * 0.4), np.int(len(own) * 0.7)
            parts += [own[:train], own[train:val], own[val:]]
        np.save(file, np.array(parts))
    parts = np.load(file, allow_pickle=True).tolist()
    # stored as train, test, validation
    return [
        [Partition(data, parts[3 * i + k]) for i in range(args.n_clients)]
        for k in (0, 2, 1)
    ]
