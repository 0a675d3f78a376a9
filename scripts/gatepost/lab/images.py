"""Debian images: built once by mmdebstrap from the mirrors that the host already uses, then never changed.

A build is a directory of its own under `DIRECTORY`, named by what went into it and when. It is made beside and renamed
when it is whole, so a half-built image is never used, and it stays until no machine stands on it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shlex
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from gatepost.errors import GatepostError
from gatepost.lab import host, store

DIRECTORY = host.DIRECTORY / "images"
FORMAT = 1  # raised when `_furnish` changes, so that older builds are not taken for the new kind
CODENAMES = {12: "bookworm", 13: "trixie"}
PACKAGES = (
    "systemd", "systemd-sysv", "dbus", "udev", "openssh-server", "cloud-init", "sudo",
    "python3", "python3-apt", "iproute2", "ca-certificates", "netbase",
)  # fmt: skip
NEEDED_BYTES = 800_000_000  # a build takes about 300 MB, and its packages pass through the same disk
Progress = Callable[[str], None]

# cloud-init as on a cloud, restricted to what the seed asks for: its other data sources and modules only cost boot
# time.
_CLOUD_INIT = """\
datasource_list: [NoCloud]
network: {config: disabled}
ssh_genkeytypes: [ed25519]
manage_etc_hosts: false
cloud_init_modules: [set_hostname, users_groups, ssh]
cloud_config_modules: []
cloud_final_modules: []
"""
# Timers that would wake up at odd times and take the dpkg lock or the disk away from who configures the machine.
_MASKED = ("apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer")


@dataclass(frozen=True, slots=True)
class Source:
    """One Debian archive that the host uses: base URI and the keyring that signs it."""

    uri: str
    keyring: Path


@dataclass(frozen=True, slots=True)
class Image:
    """A finished build; `root` is its root directory, `built_at` seconds since the epoch."""

    path: Path
    built_at: float

    @property
    def root(self) -> Path:
        """The root file system, to be used as an overlay's lower directory only."""
        return self.path / "root"

    @property
    def age_days(self) -> float:
        """Days since it was built."""
        return (time.time() - self.built_at) / 86400


def key(release: int) -> str:
    """Return the name stem of builds that hold the same thing: release, architecture, packages and format."""
    if release not in CODENAMES:
        raise GatepostError(
            f"release {release}",
            expected=" or ".join(map(str, sorted(CODENAMES))),
            next_step="Set `local.release` in settings.yml to one of them.",
        )
    content = json.dumps([FORMAT, release, sorted(PACKAGES), _CLOUD_INIT, _MASKED])
    return f"debian-{release}-{os.uname().machine}-{hashlib.sha256(content.encode()).hexdigest()[:10]}"


def newest(release: int, directory: Path = DIRECTORY) -> Image | None:
    """Return the youngest finished build of a release, or None."""
    builds = sorted(directory.glob(f"{key(release)}-[0-9]*"))
    if not builds:
        return None
    try:
        described = json.loads((builds[-1] / "image.json").read_text())
        return Image(builds[-1], float(described["built_at"]))
    except (OSError, ValueError, KeyError) as error:
        raise GatepostError(
            f"{builds[-1]}: not an image of ours: {error}", next_step=f"Remove {builds[-1]} if nothing uses it."
        ) from error


def ensure(
    release: int,
    *,
    max_age_days: float = 30,
    progress: Progress = lambda line: None,
    directory: Path = DIRECTORY,
    cancelled: threading.Event | None = None,
) -> Image:
    """Return an image of the release that is not older than `max_age_days`, building one if need be (about 25 s).

    Raises GatepostError when there is no room, no mirror or no keyring; nothing half-built stays behind.
    """
    image = newest(release, directory)
    if image and image.age_days <= max_age_days:
        return image
    started = time.time()
    try:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    except OSError as error:
        raise store.disk_error(error) from error
    with host.lock(f"image-{release}", what=f"the image of Debian {release}", timeout=900):
        image = newest(release, directory)
        # Another run may have built it while this one waited for the lock.
        if image and (image.age_days <= max_age_days or image.built_at >= started):
            return image
        for left in directory.glob(f".building-{release}-*"):
            shutil.rmtree(left)  # of a build that died: whoever holds the lock is the only builder
        built = _build(release, directory, image, progress, cancelled)
        prune(release, directory)
        return built


@contextlib.contextmanager
def in_use(image: Image) -> Iterator[None]:
    """Keep a build from being pruned until an overlay is mounted on it, which then keeps it."""
    with _directory_lock(image.path, fcntl.LOCK_SH):
        yield


@contextlib.contextmanager
def _directory_lock(path: Path, how: int) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, how)
        yield
    finally:
        os.close(descriptor)


def prune(release: int, directory: Path = DIRECTORY) -> None:
    """Remove the builds of a release that are superseded and that no machine, running or stopped, stands on."""
    keep = newest(release, directory)
    used = {machine.get("image") for machine in store.read()["machines"].values()}
    mounts = Path("/proc/self/mounts").read_text()
    for build in directory.glob(f"debian-{release}-*"):
        if (keep and build == keep.path) or build.name in used or f"{build}/root" in mounts:
            continue
        with contextlib.suppress(BlockingIOError), _directory_lock(build, fcntl.LOCK_EX | fcntl.LOCK_NB):
            shutil.rmtree(build)


def _build(
    release: int, directory: Path, older: Image | None, progress: Progress, cancelled: threading.Event | None
) -> Image:
    codename = CODENAMES[release]
    free = shutil.disk_usage(directory).free
    if free < NEEDED_BYTES:
        raise GatepostError(
            f"{directory}: {free // 1_000_000} MB free on its file system, too few for the image of Debian {release}",
            expected=f"{NEEDED_BYTES // 1_000_000} MB",
            next_step=f"Free space there, or mount a larger file system at {directory}, then run this again.",
        )
    archive, security = host_sources()
    temporary = directory / f".building-{release}-{os.getpid()}-{time.time_ns()}"
    root = temporary / "root"
    lines = [
        f"deb [signed-by={archive.keyring}] {archive.uri} {codename} main",
        f"deb [signed-by={archive.keyring}] {archive.uri} {codename}-updates main",
    ]
    if security:
        lines.append(f"deb [signed-by={security.keyring}] {security.uri} {codename}-security main")
    argv = [
        "mmdebstrap", "--mode=root", "--variant=minbase", "--format=directory", f"--include={','.join(PACKAGES)}",
        *_proxy(), codename, str(root), *lines,
    ]  # fmt: skip
    progress(f"Building the image of Debian {release} in {directory} (once; about 30 s and 300 MB)")
    try:
        temporary.mkdir()
        _mmdebstrap(argv, temporary, archive.uri, older, progress, cancelled)
        _furnish(root, archive, security, codename)
        built_at = time.time()
        described = {"release": release, "built_at": built_at, "format": FORMAT, "packages": PACKAGES, "sources": lines}
        (temporary / "image.json").write_text(json.dumps(described, indent=1))
        stamp = time.strftime("%Y%m%d%H%M%S", time.gmtime(built_at))
        final = directory / f"{key(release)}-{stamp}"
        temporary.chmod(0o711)
        root.chmod(0o755)
        temporary.rename(final)
    except OSError as error:
        raise store.disk_error(error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    progress(f"Image of Debian {release} ready: {final}")
    return Image(final, built_at)


def _mmdebstrap(
    argv: list[str],
    temporary: Path,
    mirror: str,
    older: Image | None,
    progress: Progress,
    cancelled: threading.Event | None,
) -> None:
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": str(temporary)}
    process = subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace",
        start_new_session=True, env=environment,
    )  # fmt: skip
    said: list[str] = []

    def listen() -> None:
        assert process.stderr
        for line in process.stderr:
            said.append(line.rstrip())
            if line.startswith("I: "):
                progress(line[3:].rstrip())

    listener = threading.Thread(target=listen, daemon=True)
    listener.start()
    if not host.wait_for(lambda: process.poll() is not None, timeout=1800, cancelled=cancelled, interval=0.1):
        # Terminate the whole session: mmdebstrap unmounts what it mounted when it is asked to end.
        os.killpg(process.pid, 15)
        process.wait(timeout=60)
        raise GatepostError(
            "building the image was interrupted", next_step="Run this again; nothing half-built is kept."
        )
    listener.join(timeout=10)
    if process.returncode == 0:
        return
    text = "\n".join(line for line in said if not line.startswith("I: "))
    cached = (
        f"The cached image is {older.age_days:.0f} days old: a larger `local.image_max_age_days` would use it. "
        if older
        else ""
    )
    if "No space left" in text or "enough free space" in text:
        raise GatepostError(
            f"{temporary.parent}: the disk is full: mmdebstrap stopped",
            expected=f"{NEEDED_BYTES // 1_000_000} MB free",
            next_step=f"Free space there and run this again. {cached}Nothing half-built is kept.",
        )
    network = re.search(
        r"(Could not resolve|Could not connect|Unable to connect|Failed to fetch|Connection (failed|timed))", text
    )
    raise GatepostError(
        f"mmdebstrap could not build the image from {mirror}: " + "\n".join(text.splitlines()[-6:]),
        expected="a Debian mirror that answers" if network else "",
        next_step="Check the network, the mirror in the host's /etc/apt/sources.list* and its proxy: `apt-get update` "
        f"shows the same. {cached}Nothing half-built is kept.",
    )


def _furnish(root: Path, archive: Source, security: Source | None, codename: str) -> None:
    """Make the plain system into a machine image: no identity of its own, cloud-init restricted, nothing about mail."""
    for secret in (root / "etc/ssh").glob("ssh_host_*"):
        secret.unlink()  # every machine makes its own at first boot
    (root / "etc/machine-id").write_text("")
    (root / "etc/cloud/cloud.cfg.d/99-gatepost-lab.cfg").write_text(_CLOUD_INIT)
    for unit in _MASKED:
        link = root / "etc/systemd/system" / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    for source in filter(None, (archive, security)):
        if not (root / source.keyring.relative_to("/")).exists():
            target = root / source.keyring.relative_to("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source.keyring, target)
    proxy = [option.split("=", 1)[1] for option in _proxy()]
    if proxy:
        (root / "etc/apt/apt.conf.d/90gatepost-lab").write_text("".join(f"{line}\n" for line in proxy))


def _proxy() -> list[str]:
    """Return the host's apt proxies as mmdebstrap options."""
    options = []
    with contextlib.suppress(GatepostError):
        for line in host.run("apt-config", "dump", "--format=%f %v%n").splitlines():
            name, _, value = line.partition(" ")
            if name in ("Acquire::http::Proxy", "Acquire::https::Proxy") and value:
                options.append(f'--aptopt={name} "{value}";')
    return options


def host_sources(etc_apt: Path = Path("/etc/apt")) -> tuple[Source, Source | None]:
    """Return the Debian archive and security archive that the host's apt uses, as (archive, security or None).

    Reads one-line `.list` and deb822 `.sources` files (sources.list(5)); entries that are disabled, and other vendors',
    are passed over. Raises GatepostError when there is no Debian archive or no keyring for it.
    """
    entries: list[tuple[str, list[str], str]] = []
    for file in (etc_apt / "sources.list", *sorted(etc_apt.glob("sources.list.d/*"))):
        if file.is_file() and file.suffix == ".sources":
            entries += _deb822(file.read_text(errors="replace"))
        elif file.is_file() and file.suffix == ".list":
            entries += _one_line(file.read_text(errors="replace"))
    archive = security = None
    for uri, suites, signed_by in entries:
        if not re.match(r"(https?|ftp)://", uri) or not suites:
            continue
        source = Source(uri.rstrip("/"), _keyring(signed_by))
        if re.search(r"/debian-security/?$", uri) or any(
            re.search(r"(-security|/updates)$", suite) for suite in suites
        ):
            # Some mirrors keep both under one path; the plain archive is then found by its other suites.
            security = security or source
        if re.search(r"/debian/?$", uri) and any(re.fullmatch(r"[a-z]+", suite) for suite in suites):
            archive = archive or source
    if archive is None:
        raise GatepostError(
            f"{etc_apt}: no Debian archive among the host's package sources",
            expected="a line such as `deb URI trixie main`, with a URI that ends in /debian",
            next_step="Add one (the lab builds its machines from the mirror that the host uses), then run this again.",
        )
    if not archive.keyring.is_file():
        raise GatepostError(
            f"{archive.keyring}: the key of Debian's archive is not there",
            next_step="apt-get install debian-archive-keyring",
        )
    return archive, security


def _keyring(signed_by: str) -> Path:
    if signed_by.startswith("/"):
        return Path(signed_by)
    candidates = [Path("/usr/share/keyrings/debian-archive-keyring" + end) for end in (".gpg", ".pgp")]
    return next((path for path in candidates if path.is_file()), candidates[0])


def _one_line(text: str) -> list[tuple[str, list[str], str]]:
    entries = []
    for line in text.splitlines():
        match = re.match(r"\s*deb\s+(?:\[(?P<options>[^]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)", line)
        if match:
            options = dict(word.split("=", 1) for word in shlex.split(match["options"] or "") if "=" in word)
            entries.append((match["uri"], [match["suite"]], options.get("signed-by", "")))
    return entries


def _deb822(text: str) -> list[tuple[str, list[str], str]]:
    entries = []
    for stanza in re.split(r"\n\s*\n", "\n".join(line for line in text.splitlines() if not line.startswith("#"))):
        fields: dict[str, str] = {}
        name = ""
        for line in stanza.splitlines():
            if line[:1] in " \t" and name:
                fields[name] += " " + line.strip()
            elif ":" in line:
                name, _, value = line.partition(":")
                name = name.strip().lower()
                fields[name] = value.strip()
        if "deb" in fields.get("types", "").split() and fields.get("enabled", "yes").lower() in (
            "yes",
            "true",
            "1",
            "on",
        ):
            suites = fields.get("suites", "").split()
            entries += [(uri, suites, fields.get("signed-by", "")) for uri in fields.get("uris", "").split()]
    return entries
