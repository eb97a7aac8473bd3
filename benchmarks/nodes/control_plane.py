"""Control plane: a Kubernetes without nodes, as processes on the loopback interface, and kwok for nodes."""

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from benchmarks.process import Process, free_port

ROOT = Path(__file__).parents[2]
PROGRAMS = ("etcd", "helm", "kubernetes", "kwok", "prometheus", "prometheus-adapter")
SERVICES = "198.19.0.0/16"
"""Addresses of Services, from the range that is reserved for tests; no packet is sent there."""
PATIENCE = 600.0
"""Seconds that a part of it may need, on a machine that does other things."""
LEASE = 40
"""Seconds that the lease of a node is valid, as with a kubelet; it is renewed every 10 seconds."""


def programs() -> Path:
    """The folder with the PROGRAMS, which are built if they are not there."""
    command = [str(ROOT / "k8s" / "local" / "programs"), *PROGRAMS]
    return Path(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip())


def wait(condition: Callable[[], object], what: str, seconds: float = PATIENCE, every: float = 0.05) -> float:
    """Seconds until the condition holds; raises TimeoutError if that is later than `seconds`."""
    began = time.monotonic()
    while not condition():
        if time.monotonic() - began > seconds:
            raise TimeoutError(f"after {seconds:g} s: {what}")
        time.sleep(every)
    return time.monotonic() - began


class ControlPlane:
    """etcd, kube-apiserver and kube-scheduler, until the end of the `with` block.

    kube-controller-manager and kwok are started apart, since their options and their ends are part of what is
    simulated.
    """

    def __init__(self, bin_: Path, folder: Path) -> None:
        self.bin = bin_
        self.folder = folder
        self.port = free_port()
        self.kubeconfig = folder / "super-admin.conf"
        self.environment = {
            **os.environ,
            "KUBECONFIG": str(self.kubeconfig),
            "PATH": f"{bin_}:{os.environ['PATH']}",
            "HELM_CACHE_HOME": str(folder / "helm"),
            "HELM_CONFIG_HOME": str(folder / "helm"),
            "HELM_DATA_HOME": str(folder / "helm"),
        }
        self._running = contextlib.ExitStack()

    def __enter__(self) -> "ControlPlane":
        self._credentials()
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        try:
            self._start_servers(client, peer)
        except BaseException:
            self._running.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()

    def run(self, *command: str | Path, given: str | None = None, check: bool = True) -> str:
        """What kubectl, helm or another program prints.

        Raises:
            RuntimeError: It failed, with what it said.
        """
        done = subprocess.run(
            [str(part) for part in command],
            input=given,
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(map(str, command))[:300]}: {done.stderr.strip()[-2000:]}")
        return done.stdout

    def works(self, *command: str) -> bool:
        """Whether a command ends with 0."""
        done = subprocess.run(command, env=self.environment, capture_output=True, check=False)
        return done.returncode == 0

    def start(self, name: str, *options: str, log: str = "") -> Process:
        """A program, for a `with` block; `log` is the name of its log, if not the program's."""
        return Process(name, [str(self.bin / name), *options], self.folder / f"{log or name}.log")

    @contextlib.contextmanager
    def controllers(self, *options: str) -> Iterator[None]:
        """kube-controller-manager within the block, with further options."""
        pki = self.folder / "pki"
        with self.start(
            "kube-controller-manager",
            *("--kubeconfig", str(self.kubeconfig)),
            "--leader-elect=false",
            *("--secure-port", "0"),
            "--use-service-account-credentials",
            *("--service-account-private-key-file", str(pki / "sa.key")),
            *("--root-ca-file", str(pki / "ca.crt")),
            *options,
        ):
            yield

    def kubelets(self, zone: str, stages: Path) -> Process:
        """kwok as the kubelets of all nodes in a zone, for a `with` block."""
        return self.start(
            "kwok",
            *("--kubeconfig", str(self.kubeconfig)),
            *("--config", str(stages)),
            *("--manage-nodes-with-label-selector", f"topology.kubernetes.io/zone={zone}"),
            *("--node-lease-duration-seconds", str(LEASE)),
            log=f"kwok-{zone}",
        )

    def _credentials(self) -> None:
        config = self.folder / "kubeadm.yaml"
        config.write_text(f"""\
apiVersion: kubeadm.k8s.io/v1beta4
kind: InitConfiguration
localAPIEndpoint: {{advertiseAddress: 192.0.2.1, bindPort: {self.port}}}
nodeRegistration: {{name: simulation, criSocket: "unix:///none"}}
---
apiVersion: kubeadm.k8s.io/v1beta4
kind: ClusterConfiguration
kubernetesVersion: v1.34.4
controlPlaneEndpoint: 127.0.0.1:{self.port}
certificatesDir: {self.folder / "pki"}
encryptionAlgorithm: ECDSA-P256
networking: {{serviceSubnet: {SERVICES}}}
""")
        phase = ("kubeadm", "init", "phase")
        self.run(*phase, "certs", "all", "--config", config)
        self.run(*phase, "kubeconfig", "super-admin", "--config", config, "--kubeconfig-dir", self.folder)

    def _start_servers(self, client: str, peer: str) -> None:
        pki = self.folder / "pki"
        stay = self._running.enter_context
        stay(
            self.start(
                "etcd",
                *("--data-dir", str(self.folder / "etcd")),
                "--unsafe-no-fsync",
                *("--listen-client-urls", client, "--advertise-client-urls", client),
                *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
                *("--initial-cluster", f"default={peer}"),
            )
        )
        stay(
            self.start(
                "kube-apiserver",
                *("--etcd-servers", client),
                *("--bind-address", "127.0.0.1", "--secure-port", str(self.port)),
                *("--advertise-address", "192.0.2.1", "--endpoint-reconciler-type", "none"),
                *("--authorization-mode", "Node,RBAC"),
                *("--service-cluster-ip-range", SERVICES),
                *("--client-ca-file", str(pki / "ca.crt")),
                *("--tls-cert-file", str(pki / "apiserver.crt")),
                *("--tls-private-key-file", str(pki / "apiserver.key")),
                *("--service-account-issuer", "https://kubernetes.default.svc.cluster.local"),
                *("--service-account-key-file", str(pki / "sa.pub")),
                *("--service-account-signing-key-file", str(pki / "sa.key")),
                *("--requestheader-client-ca-file", str(pki / "front-proxy-ca.crt")),
                *("--requestheader-allowed-names", "front-proxy-client"),
                *("--requestheader-extra-headers-prefix", "X-Remote-Extra-"),
                *("--requestheader-group-headers", "X-Remote-Group"),
                *("--requestheader-username-headers", "X-Remote-User"),
                *("--proxy-client-cert-file", str(pki / "front-proxy-client.crt")),
                *("--proxy-client-key-file", str(pki / "front-proxy-client.key")),
            )
        )
        wait(lambda: self.works("kubectl", "get", "--raw", "/readyz"), "the API server is not ready")
        options = ("--leader-elect=false", "--secure-port", "0")
        stay(self.start("kube-scheduler", "--kubeconfig", str(self.kubeconfig), *options))
