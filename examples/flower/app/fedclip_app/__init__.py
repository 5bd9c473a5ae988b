"""FedCLIP as a Flower app of its own; see ../README.md."""
