"""Loaders of image folders and of arrays; what they give is never looked at."""

from __future__ import annotations

import numpy as np
import torch
from datautil.datasplit import split
from torch.utils.data import DataLoader, Subset
from torchvision.datasets import ImageFolder


class Images:
    def __init__(self, folder):
        images = ImageFolder(folder).imgs
        self.x = [path for path, _ in images]
        self.targets = np.array([label for _, label in images])

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        raise AssertionError("FedCLIP reads the files itself")


class Arrays:
    def __init__(self, folder):
        self.data = torch.Tensor(np.load(folder + "xdata.npy")).unsqueeze(1)
        self.targets = np.squeeze(np.load(folder + "ydata.npy"))

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return self.data[index], self.targets[index]


def loaders(args, parts):
    return [DataLoader(part, batch_size=args.batch) for part in parts]


def folders(args):
    split_parts = [], [], []
    for domain in args.domains:
        data = Images(args.root_dir + args.dataset + "/" + domain)
        order = np.arange(len(data))
        np.random.seed(args.seed)
        np.random.shuffle(order)
        own, fifth = int(len(data) * args.datapercent), int(len(data) * 0.2)
        bounds = (0, own), (own, 2 * own), (2 * own, 2 * own + fifth)
        for parts, (start, end) in zip(split_parts, bounds):
            parts.append(Subset(data, order[start:end]))
    return [loaders(args, parts) for parts in split_parts]


def arrays(args):
    data = Arrays(args.root_dir + args.dataset + "/")
    args.num_classes = 11
    return [loaders(args, parts) for parts in split(args, data)]


def get_data(name):
    known = {"officehome": folders, "pacs": folders, "vlcs": folders}
    return {**known, "medmnist": arrays, "medmnistA": arrays}[name]
