"""An NVFlare system with mTLS on this machine: server, three sites, one job.

`python deploy.py` gives each of three sites the images of one domain, in a directory
that only this site is told of; the server has none.  It provisions the system, allows
fedclip's classes, starts it, submits a job, downloads what it left, and stops every
process that it started.  See README.md.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil  # NVFlare depends on it

from fedclip_plugin.cli.parser import main as fedclip
from fedclip_plugin.registry import nvflare_host

HOST, ADMIN, ORG = "localhost", "admin@example.org", "hospitals"
DOMAINS = ("scan", "negative", "photo")  # a site's each
PATIENCE = 300.0  # seconds for a process to come up, and for its answers
PROJECT = """\
api_version: 3
name: fedclip
participants:
  - {{name: {host}, type: server, org: {org}, fed_learn_port: {port}}}
{sites}
  - {{name: {admin}, type: admin, org: {org}, role: project_admin}}
builders:
  - path: nvflare.lighter.impl.workspace.WorkspaceBuilder
    args: {{template_file: master_template.yml}}
  - path: nvflare.lighter.impl.static_file.StaticFileBuilder
    args: {{config_folder: config, scheme: tcp}}
  - path: nvflare.lighter.impl.cert.CertBuilder
  - path: nvflare.lighter.impl.signature.SignatureBuilder
"""


def free_port() -> int:
    """Of those that systems do not hand out: no connection gets it by chance."""
    while True:
        port = secrets.choice(range(10_000, 32_000))
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("", port))
            return port


class Deployment:
    """A server and a site for each of `sites`, until the `with` block ends.

    `sites` are names with what goes into the site's `local/fedclip.json`.  Kits, logs
    and all that NVFlare writes lie in `work`.
    """

    def __init__(self, work: Path, sites: Mapping[str, Mapping[str, Any]]) -> None:
        self.work, self.sites = work, sites
        self.kits = work / "fedclip" / "prod_00"
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Deployment:
        try:
            self._provision()
            self.start(HOST)
            for site in self.sites:
                self.start(site)
            for site in self.sites:
                self.wait_for(site, "Successfully registered client")
            self.connect()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.session.close()
        finally:
            self.stop()

    def command(self, name: str) -> list[str]:
        """Of the server or a site, as in the last line of its `sub_start.sh`."""
        part = "server" if name == HOST else "client"
        own = [] if name == HOST else [f"uid={name}"]
        return [
            *(
                sys.executable,
                "-u",
                "-m",
                f"nvflare.private.fed.app.{part}.{part}_train",
            ),
            *("-m", str(self.kits / name), "-s", f"fed_{part}.json"),
            *("--set", "secure_train=true", *own, f"org={ORG}", "config_folder=config"),
        ]

    def start(self, name: str) -> None:
        """Start the server or a site."""
        with (self.work / f"{name}.log").open("ab") as log:
            self.processes[name] = subprocess.Popen(
                self.command(name),
                cwd=self.work,
                env={**os.environ, "OMP_NUM_THREADS": "1", "HOME": str(self.work)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def run(self, job: Path, destination: Path) -> tuple[str, Path]:
        """Submit a job and wait for its end: its status, and what it left."""
        number = self.submit(job)
        return self.ended(number), self.download(number, destination)

    def submit(self, job: Path) -> str:
        """Hand in a job; its number."""
        return str(self.session.submit_job(str(job)))

    def ended(self, job: str, seconds: float = 600.0) -> str:
        """How a job has ended, once it has."""
        end = time.monotonic() + seconds
        while True:
            status = str(self.session.get_job_meta(job).get("status"))
            if status.startswith("FINISHED"):
                return status
            if time.monotonic() > end:
                raise SystemExit(f"job {job} is still {status}")
            time.sleep(0.5)

    def download(self, job: str, destination: Path) -> Path:
        """What the job left at the server: `fedclip/` has the run."""
        found = Path(self.session.download_job_result(job, str(destination)))
        return found / "workspace" / "fedclip"

    def connect(self) -> None:
        """Log in at the server as its admin: at first, and when it was started anew."""
        from nvflare.fuel.flare_api.flare_api import new_secure_session

        kit = str(self.kits / ADMIN)
        self.session: Any = new_secure_session(ADMIN, kit, timeout=PATIENCE)
        self.session.set_timeout(60.0)  # NVFlare's own 5 are few on a busy machine

    def connected(self) -> set[str]:
        """The sites that the server has heard of since it was started."""
        return {site.name for site in self.session.get_system_info().client_info}

    def log(self, name: str) -> str:
        """What the server or a site has said so far."""
        return (self.work / f"{name}.log").read_text(errors="replace")

    def wait_for(self, name: str, words: str, seconds: float = PATIENCE) -> None:
        """Until the server or a site has said `words`."""
        end = time.monotonic() + seconds
        while words not in self.log(name):
            if time.monotonic() > end or self.processes[name].poll() is not None:
                raise SystemExit(f"{name} did not say {words!r}:\n{self.log(name)}")
            time.sleep(0.2)

    def kill(self, name: str, how: signal.Signals = signal.SIGKILL) -> None:
        """A signal to the server or a site, and to the processes of its jobs."""
        for process in self.family(name):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.send_signal(how)

    def family(self, name: str) -> list[psutil.Process]:
        """The process of the server or of a site, and those that it started."""
        try:
            first = psutil.Process(self.processes[name].pid)
            return [first, *first.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def stop(self) -> None:
        """End every process that was started here."""
        for name in [*self.sites, HOST]:
            if name in self.processes:
                self.kill(name, signal.SIGKILL)
                self.processes[name].wait()

    def _provision(self) -> None:
        sites = [f"  - {{name: {n}, type: client, org: {ORG}}}" for n in self.sites]
        project = self.work / "project.yml"
        project.write_text(
            PROJECT.format(
                host=HOST,
                org=ORG,
                admin=ADMIN,
                port=free_port(),
                sites="\n".join(sites),
            )
        )
        program = [sys.executable, "-m", "nvflare.lighter.provision"]
        subprocess.run(
            [*program, "-p", str(project), "-w", str(self.work)],
            check=True, capture_output=True, env={**os.environ, "HOME": str(self.work)},
        )  # fmt: skip
        for line in nvflare_host.allow(self.kits):
            print(line, flush=True)
        resources = self.kits / HOST / "local" / "resources.json"
        text = resources.read_text()  # NVFlare keeps jobs in a folder for all systems
        resources.write_text(text.replace("/tmp/nvflare/", f"{self.work}/"))
        for site, own in self.sites.items():
            path = self.kits / site / "local" / "fedclip.json"
            path.write_text(json.dumps(dict(own)))


def split_digits(folder: Path) -> dict[str, Path]:
    """The embedded digits as images: a directory for each site, with one domain."""
    fedclip(["data", "digits", "--to", str(folder / "all"), "--quiet"])
    sites = {}
    for number, domain in enumerate(DOMAINS, 1):
        own = folder / f"data-of-site-{number}"
        own.mkdir()
        (folder / "all" / domain).rename(own / domain)
        sites[f"site-{number}"] = own
    return sites


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--alg", default="fedclip")
    parser.add_argument("--out", type=Path, default=Path("runs/nvflare"))
    args = parser.parse_args(words)
    with tempfile.TemporaryDirectory(prefix="fedclip-nvflare-") as name:
        work = Path(name)
        sites = {n: {"root": str(path)} for n, path in split_digits(work).items()}
        options = {
            # one domain is not the data set "digits": a name of its own
            **{"dataset": "my-digits", "model": "fedclip-tiny", "alg": args.alg},
            **{"rounds": args.rounds, "min-sites": len(sites)},
        }
        nvflare_host.write_job(work / "job", options)
        with Deployment(work, sites) as deployment:
            status, found = deployment.run(work / "job", work / "downloaded")
            for line in deployment.log(HOST).splitlines():
                if "fedclip: " in line:
                    print(line[line.index("fedclip: ") :])
        print(status)
        if found.is_dir():
            shutil.copytree(found, args.out, dirs_exist_ok=True)
            print(f"results: {args.out}")
    return 0 if status == "FINISHED:COMPLETED" else 1


if __name__ == "__main__":
    sys.exit(main())
