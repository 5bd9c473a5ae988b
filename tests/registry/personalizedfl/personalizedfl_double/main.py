"""The loop that an algorithm of PersonalizedFL is called from."""

from __future__ import annotations

import argparse
import os

import numpy as np
import torch
from alg import algs
from datautil.prepare_data import *  # noqa: F403 - bound before main runs, as there
from util.evalandprint import evalandprint

DOMAINS = {
    "pacs": ["art_painting", "cartoon", "photo", "sketch"],
    "off_home": ["Art", "Clipart", "Product", "Real_World"],
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--alg", default="fixed")
    parser.add_argument("--datapercent", type=float, default=0.1)
    parser.add_argument("--dataset", default="pacs")
    parser.add_argument("--root_dir", default="./data/")
    parser.add_argument("--save_path", default="./cks/")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--iters", type=int, default=300)
    parser.add_argument("--lr", type=float, default=1e-2)
    parser.add_argument("--n_clients", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wk_iters", type=int, default=1)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    if args.dataset in DOMAINS:
        args.domains = DOMAINS[args.dataset]
        args.n_clients = 4
    folder = os.path.join(args.save_path, f"fed_{args.dataset}_{args.alg}")
    os.makedirs(folder, exist_ok=True)
    loaders = get_data(args.dataset)(args)  # noqa: F405
    algorithm = algs.get_algorithm_class(args.alg)(args)
    best = (0, [0] * args.n_clients)
    for a_iter in range(args.iters):
        print(f"============ Train round {a_iter} ============")
        for _ in range(args.wk_iters):
            for i in range(args.n_clients):
                algorithm.client_train(i, loaders[0][i], a_iter)
        algorithm.server_aggre()
        path = os.path.join(folder, args.alg)
        best = evalandprint(args, algorithm, loaders, path, best, a_iter)
    s = "Personalized test acc for each client: "
    s += "".join(f"{acc:.4f}," for acc in best[1])
    print(f"{s}\nAverage accuracy: {np.mean(best[1]):.4f}")
