"""A Flower deployment with TLS on this machine: SuperLink, SuperNodes, `flwr run`.

`python deploy.py` gives each of four clients the images of one domain, in a directory
that only this client is told of, runs the app beside this file and stops everything
that it started.  See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import ipaddress
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedclip_plugin.cli.parser import main as fedclip

APP = Path(__file__).resolve().parent
DOMAINS = ("scan", "negative", "photo", "sketch")  # in the order of the data set
HOST = "127.0.0.1"
PATIENCE = 300.0  # seconds for a process to come up
ENDING = 60.0  # seconds for one to end


def write_certificates(folder: Path) -> None:
    """`ca.pem`, `server.pem` and `server.key`, valid for HOST and for a day."""
    folder.mkdir(parents=True)
    ca_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    names = [
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        for name in ("fedclip example CA", HOST)
    ]
    now = datetime.datetime.now(datetime.timezone.utc)

    def certificate(
        name: x509.Name, public: ec.EllipticCurvePublicKey, ca: bool
    ) -> bytes:
        # the SuperLink's own processes come to it by its loopback address
        addresses = [
            x509.IPAddress(ipaddress.ip_address(text))
            for text in dict.fromkeys((HOST, "127.0.0.1"))
        ]
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(names[0])
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca, None), critical=True)
            .add_extension(x509.SubjectAlternativeName(addresses), critical=False)
            .sign(ca_key, hashes.SHA256())
            .public_bytes(serialization.Encoding.PEM)
        )

    (folder / "ca.pem").write_bytes(certificate(names[0], ca_key.public_key(), True))
    (folder / "server.pem").write_bytes(certificate(names[1], key.public_key(), False))
    path = folder / "server.key"
    path.touch(mode=0o600)
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def free_port() -> int:
    """Of those that systems do not hand out: no connection gets it by chance."""
    while True:
        port = secrets.choice(range(10_000, 32_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return port


class Deployment:
    """A SuperLink and one SuperNode for each node config, until the `with` block ends.

    Certificates, logs and Flower's own files lie in `work`.  `nodes[i]` is the process
    of the i-th SuperNode.
    """

    def __init__(self, work: Path, node_configs: Sequence[str]) -> None:
        self.work = work
        self.node_configs = node_configs
        self.address = f"{HOST}:{free_port()}"
        self.nodes: list[subprocess.Popen[bytes]] = []
        self._all: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Deployment:
        tls = self.work / "tls"
        write_certificates(tls)
        home = self.work / "flwr"  # instead of ~/.flwr
        home.mkdir()
        (home / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "{self.address}"\nroot-certificates = "{tls / "ca.pem"}"\n'
        )
        self.environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "FLWR_HOME": str(home),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",  # all clients share this machine's cores
        }
        certificate = ["--ssl-ca-certfile", tls / "ca.pem"]
        certificate += ["--ssl-certfile", tls / "server.pem"]
        certificate += ["--ssl-keyfile", tls / "server.key"]
        port = self.address.partition(":")[2]
        try:
            self._start(
                "superlink", "flower-superlink", "--host", HOST, "--port", port,
                *certificate,
                "--disable-runtime-dependency-installation",
            )  # fmt: skip
            self._wait_for("superlink", "Application startup complete")
            for number, config in enumerate(self.node_configs):
                node = self._start(
                    f"supernode-{number}", "flower-supernode", *certificate,
                    "--superlink", self.address,
                    "--root-certificates", tls / "ca.pem",
                    "--port", free_port(), "--node-config", config,
                )  # fmt: skip
                self.nodes.append(node)
            for number in range(len(self.nodes)):
                self._wait_for(f"supernode-{number}", "SuperNode ID")
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, app: Path = APP, config: str = "") -> subprocess.Popen[str]:
        """`flwr run`, its log on the pipe; ends when the run does."""
        command = ["flwr", "run", str(app), "here", "--stream"]
        return subprocess.Popen(
            [*command, "--run-config", config] if config else command,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def log(self, name: str) -> str:
        """What `superlink` or `supernode-<i>` has said so far."""
        return (self.work / f"{name}.log").read_text(errors="replace")

    def stop(self) -> None:
        """End every process that was started here, and what it started."""
        for process in reversed(self._all):
            kill(process, signal.SIGTERM)
        for process in reversed(self._all):
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)
            kill(process, signal.SIGKILL)
            process.wait()

    def _start(self, name: str, *command: object) -> subprocess.Popen[bytes]:
        with (self.work / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [str(word) for word in command],
                cwd=self.work,
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group: its children end with it
            )
        self._all.append(process)
        return process

    def _wait_for(self, name: str, words: str) -> None:
        end = time.monotonic() + PATIENCE
        while words not in self.log(name):
            if time.monotonic() > end or any(p.poll() is not None for p in self._all):
                raise SystemExit(f"{name} did not start:\n{self.log(name)}")
            time.sleep(0.2)


def kill(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    """Send a signal to a process and its children, if they are still there."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, how)


def split_digits(folder: Path) -> list[Path]:
    """The embedded digits as images: a directory for each client, with one domain."""
    fedclip(["data", "digits", "--to", str(folder / "all"), "--quiet"])
    clients = []
    for domain in DOMAINS:
        client = folder / f"client-{domain}"
        client.mkdir()
        (folder / "all" / domain).rename(client / domain)
        clients.append(client)
    return clients


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("runs/flower-deployment"))
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fedclip-flower-") as work:
        folders = split_digits(Path(work))
        configs = [f'partition-id={i} root="{path}"' for i, path in enumerate(folders)]
        with Deployment(Path(work), configs) as deployment:
            process = deployment.run(
                config=f"num-server-rounds={args.rounds} "
                # one domain is not the data set "digits": a name of its own
                'dataset="my-digits" model="fedclip-tiny" '
                f'out="{args.out.resolve()}"'
            )
            assert process.stdout is not None
            for line in process.stdout:
                print(line, end="", flush=True)
            process.wait()
    return 0 if (args.out / "summary.json").is_file() else 1


if __name__ == "__main__":
    sys.exit(main())
