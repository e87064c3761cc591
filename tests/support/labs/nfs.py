"""Owns hosts that share a folder over NFS: a server (nfs-ganesha) and user-mode-linux guests, each a real kernel client.

All in one network namespace of its own. A guest is a machine with systemd as PID 1 and one slow CPU: good for what
happens, not for how long it takes (importing torch: 15 s).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from tests.support.labs import guest_agent
from tests.support.labs.machine import BOOT, UNTIL_DEATH, Bind, Machine, lacks, wait_until, write_binds

PACKAGES = "nfs-ganesha nfs-ganesha-vfs nfs-common rpcbind user-mode-linux kmod iproute2"
MOUNT = "vers=4.1,hard,proto=tcp"
"""What a guest mounts with: nothing but what Linux does by default."""
LEASE = 10
"""Seconds after which the server forgets a client that is gone."""
_SERVER = "10.77.0.1"
_MODULES = Path("/usr/lib/uml/modules")
_HOLD = """\
mount -t tmpfs -o mode=755 tmpfs /run && mkdir /run/rpcbind /run/lock && chown _rpc /run/rpcbind
ip link set lo up && exec rpcbind -f -w
"""
_CONFIG = """\
NFS_CORE_PARAM {{ Protocols = 4; NFS_Port = 2049; Bind_addr = {server}; Enable_UDP = false; Enable_RQUOTA = false; mount_path_pseudo = true; }}
NFSv4 {{ Graceless = true; Minor_Versions = 1, 2; RecoveryBackend = fs; RecoveryRoot = {folder}/recovery;
  Lease_Lifetime = {lease}; Delegations = false; Only_Numeric_Owners = true; }}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT {{ Export_Id = 1; Path = {folder}/export; Pseudo = /checkpoints; Access_Type = RW; Squash = Root_Squash;
  Sectype = sys; FSAL {{ Name = VFS; }} }}
LOG {{ Default_Log_Level = EVENT; }}
"""


def missing() -> str:
    """Why there can be no such hosts here, or ""."""
    programs = "ganesha.nfsd", "rpcbind", "mount.nfs", "linux.uml", "modprobe", "ip", "nsenter", "setpriv", "unshare"
    return lacks((*programs, "/dev/net/tun", str(_MODULES)), PACKAGES)


class Network:
    """A network namespace with a bridge, held by rpcbind, which the server wants though NFS 4 does not."""

    def __init__(self) -> None:
        self._holder = subprocess.Popen(
            [*UNTIL_DEATH, "unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _HOLD],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        self.enter = ("nsenter", "--target", str(self._holder.pid), "--net", "--mount")
        theirs = Path(f"/proc/{self._holder.pid}")
        ours = os.readlink("/proc/self/ns/net")
        wait_until(
            lambda: os.readlink(theirs / "ns/net") != ours and (theirs / "root/run/rpcbind.sock").exists(),
            10,
            "rpcbind",
        )
        for line in ("link add br0 type bridge", f"addr add {_SERVER}/24 dev br0", "link set br0 up"):
            self.ip(line)

    def ip(self, arguments: str) -> None:
        subprocess.run([*self.enter, "ip", *arguments.split()], check=True)

    def connect(self, address: str, port: int, timeout: float) -> socket.socket:
        """A connection made inside: a socket belongs to the namespace that its maker was in."""
        ours, theirs = socket.socketpair()
        code = (
            "import socket,sys;c=socket.socket(fileno=0);"
            "s=socket.create_connection((sys.argv[1],int(sys.argv[2])),float(sys.argv[3]));socket.send_fds(c,[b'x'],[s.fileno()])"
        )
        with ours, theirs:
            subprocess.run(
                [*self.enter, sys.executable, "-I", "-S", "-c", code, address, str(port), str(timeout)],
                stdin=theirs, stderr=subprocess.DEVNULL, check=False,
            )  # fmt: skip
            theirs.close()
            _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
        if not descriptors:
            raise ConnectionError(f"{address} does not answer")
        return socket.socket(fileno=descriptors[0])

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait()


class Server:
    """The NFS server. What it exports is the folder `export`, on this host's disk; root is squashed."""

    def __init__(self, network: Network, folder: Path) -> None:
        self._network, self._folder = network, folder
        self.export = folder / "export"
        for path in (self.export, folder / "recovery"):
            path.mkdir()
        (folder / "ganesha.conf").write_text(_CONFIG.format(server=_SERVER, folder=folder, lease=LEASE))
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it answers."""
        log = self._folder / "ganesha.log"
        with (self._folder / "ganesha.out").open("ab") as out:
            self._process = subprocess.Popen(
                [
                    *UNTIL_DEATH, *self._network.enter, "ganesha.nfsd", "-F",
                    "-f", self._folder / "ganesha.conf", "-L", log, "-p", self._folder / "ganesha.pid",
                ],
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        ends = time.monotonic() + 20
        while time.monotonic() < ends and self._process.poll() is None:
            with contextlib.suppress(OSError):
                self._network.connect(_SERVER, 2049, 1.0).close()
                return
            time.sleep(0.1)
        raise TimeoutError(f"the NFS server did not come up:\n{log.read_text(errors='replace')[-2000:]}")

    def stop(self) -> None:
        """It dies, at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextlib.contextmanager
    def dead(self) -> Iterator[None]:
        """It does not run meanwhile; what it knew of its clients is lost."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextlib.contextmanager
    def hanging(self) -> Iterator[None]:
        """It takes what is sent and answers nothing meanwhile."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)


class Guest(Machine):
    """A host with the export mounted at /checkpoints."""

    def __init__(self, network: Network, folder: Path, number: int, binds: Iterable[Bind]) -> None:
        self._network, self._folder, self._number = network, folder, number
        self._address = f"10.77.0.{10 + number}"
        folder.mkdir()
        write_binds(folder, binds)
        (folder / "lib").mkdir()
        (folder / "lib" / "modules").symlink_to(_MODULES)
        command = f"{Path(sys.base_prefix) / 'bin/python3'} -I -S {guest_agent.__file__}"
        (folder / "lab-agent.service").write_text(
            f"[Unit]\nDefaultDependencies=no\n[Service]\nExecStart={command}\nKillMode=process\n"
        )
        network.ip(f"tuntap add dev tap{number} mode tap")
        network.ip(f"link set tap{number} master br0")
        network.ip(f"link set tap{number} up")
        self._process: subprocess.Popen[bytes] | None = None

    def power_on(self) -> None:
        """Boots; `wait` returns once it is up."""
        settings = {
            "lab": self._folder, "lab_address": self._address, "lab_server": _SERVER, "lab_mount": MOUNT, "lab_container": "uml",
            "init": BOOT, "root": "/dev/root", "rootfstype": "hostfs", "mem": "1280M", "umid": f"guest{self._number}",
            "uml_dir": f"{self._folder}/", "con": "null", "con0": "null,fd:1", "ssl": "null",
            "vec0:transport": f"tap,ifname=tap{self._number},depth=64,gro=1",
        }  # fmt: skip
        with (self._folder / "console").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    *UNTIL_DEATH, *self._network.enter, "unshare", "--pid", "--fork", "--kill-child",
                    "linux.uml", "ro", *(f"{name}={value}" for name, value in settings.items()),
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def wait(self, seconds: float = 90.0) -> None:
        """Returns once it is up, with the export mounted."""
        self.wait_for_boot(seconds, self._folder / "console")
        self.run("grep -q ' /checkpoints nfs' /proc/mounts")

    def lose_power(self) -> None:
        """It is gone at once, with what it had not written yet."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def attempt(self, argv: Sequence[str], timeout: float) -> tuple[int, str]:
        with self._network.connect(self._address, guest_agent.PORT, 5.0) as connection:
            connection.settimeout(timeout)
            with connection.makefile("rwb") as stream:
                stream.write(json.dumps(list(argv)).encode() + b"\n")
                stream.flush()
                line = stream.readline()
        if not line:
            raise ConnectionError(f"{self._address} broke off")
        answer = json.loads(line)
        return int(answer["status"]), str(answer["output"])


@contextlib.contextmanager
def hosts(
    folder: Path, binds: Sequence[Bind], *, prepare: Callable[[Path], None]
) -> Iterator[tuple[Server, tuple[Guest, Guest]]]:
    """A running server and two guests; `folder` (empty) keeps consoles and logs. `prepare` is given the export, empty."""
    with contextlib.ExitStack() as stack:
        network = Network()
        stack.callback(network.close)
        server = Server(network, folder)
        prepare(server.export)
        stack.callback(server.stop)
        server.start()
        guests = (Guest(network, folder / "guest1", 1, binds), Guest(network, folder / "guest2", 2, binds))
        for guest in guests:
            stack.callback(guest.lose_power)
            guest.power_on()
        for guest in guests:
            guest.wait()
        yield server, guests
