"""FedML's own script, with FedCLIP: python main.py --cf fedml_config.yaml

Two lines are new: the import and the call of ``register``.
"""

import fedml

from fedclip_plugin.registry import register

register("fedml")

if __name__ == "__main__":
    args = fedml.init()
    device = fedml.device.get_device(args)
    dataset, output_dim = fedml.data.load(args)
    model = fedml.model.create(args, output_dim)
    fedml.FedMLRunner(args, device, dataset, model).run()
