"""The NVFlare binding; reached through ``fedclip_plugin.registry.nvflare_host``."""
