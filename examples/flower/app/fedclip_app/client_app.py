"""A client: its name and its data come from the node config.

    flower-supernode ... \\
        --node-config 'partition-id=0 client-name="north" root="/data/north"'

Flower's mods may stand around it: `make_client_app(mods=[...])`.
"""

from fedclip_plugin.registry.flower_host import make_client_app

app = make_client_app()
