"""The contract suite is a plain module: let its assertions show their values."""

import pytest

pytest.register_assert_rewrite("tests.model_sync.index_contract")
