"""PersonalizedFL: ``main.py --alg fedclip`` in the repository, or without touching it.

    fedclip register personalizedfl DIR     # then: python main.py --alg fedclip
    python -m fedclip_plugin.registry.personalizedfl_host DIR/main.py --alg fedclip ...

The host owns the loop, the split and the tables; see docs/personalizedfl.md.
"""

from __future__ import annotations

import sys

from .personalizedfl.algorithm import PersonalizedFedClip, main, prepare, register

__all__ = ["PersonalizedFedClip", "main", "prepare", "register"]

if __name__ == "__main__":
    main(sys.argv[1:])
