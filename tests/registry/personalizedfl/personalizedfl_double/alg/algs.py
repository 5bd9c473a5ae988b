from alg.fixed import fixed  # noqa: F401 - found by its name

ALGORITHMS = [
    "fixed",
]


def get_algorithm_class(algorithm_name):
    if algorithm_name not in globals():
        raise NotImplementedError(f"no algorithm {algorithm_name}")
    return globals()[algorithm_name]
