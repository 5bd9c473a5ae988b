"""``python -m fedclip_plugin.cli`` is ``fedclip``."""

from __future__ import annotations

import sys

from .parser import main

sys.exit(main())
