"""What hosts share is beside their folders; pytest shows its asserts too."""

import pytest

pytest.register_assert_rewrite("tests.registry.contract")
