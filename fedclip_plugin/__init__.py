"""FedCLIP for federated-learning frameworks.

A frozen CLIP encodes every image once, clients train an attention adapter on the
features, and only the adapter crosses the wire.  ``import fedclip_plugin`` is cheap:
torch and the kernels are loaded by the modules that compute.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ops.kernels import Capabilities


__version__ = "0.1.0"  # the only place; pyproject.toml reads it

__all__ = ["__version__", "capabilities"]


def capabilities() -> Capabilities:
    """What this installation computes with; see :class:`Capabilities` for the keys."""
    from .ops import kernels  # importing ops registers what is then listed

    return {"version": __version__, **kernels.capabilities()}
