# SPDX-License-Identifier: LGPL-2.1-or-later
"""A Linux guest with the real md driver, for one shell script at a time.

A run boots Debian's kernel in QEMU with an initramfs made here (static busybox,
mdadm, a few modules, the files a test wants in it), runs the script as root
under busybox's sh and returns what it printed and its exit status. It needs
neither KVM nor root, and installs nothing: the kernel package is downloaded
once into ${XDG_CACHE_HOME:-~/.cache}/stripelog-kernel and unpacked there.

Disks are raw image files on one SCSI bus, since that takes a hundred and more;
a disk called NAME is /dev/NAME in the guest. They are opened with cache=unsafe:
what the guest was told is done is in the host's page cache, and stays there
when QEMU is killed. So `crash_on` is a machine that stops at once, with disks
that keep every completed write.

A script that ends powers the guest off in order, and the kernel then marks
arrays that still run as clean; `crash_on` leaves them as they are.
"""

import glob
import gzip
import io
import lzma
import os
import platform
import re
import select
import shutil
import signal
import stat
import subprocess
import tempfile
import time

# The first of these that apt knows. The cloud kernels have the virtio drivers built in and boot fastest.
KERNEL_PACKAGES = ["linux-image-6.12-cloud-amd64", "linux-image-cloud-amd64", "linux-image-amd64"]
MODULES = ["virtio_pci", "virtio_console", "virtio_scsi", "sd_mod", "crc32c_generic", "md_mod", "raid456"]
MODULES_OPTIONAL = {"crc32c_generic"}
MEMORY_MIB = 768

EXIT_LINE = re.compile(r"^@@ script ended with (\d+)$")

INIT = r"""#!/bin/busybox sh
export PATH=/bin MDADM_NO_UDEV=1
/bin/busybox mkdir -p /proc /sys /dev /run /tmp
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in $(cat /modules); do
    insmod "/lib/$module" || echo "insmod $module failed"
done
port=
while [ -z "$port" ]; do
    port=$(ls /dev/vport* 2>/dev/null | head -n 1)
done
exec >"$port" 2>&1 </dev/null
while read -r target name; do
    tries=0
    while :; do
        block=$(ls "/sys/bus/scsi/devices/0:0:$target:0/block" 2>/dev/null)
        [ -n "$block" ] && [ -b "/dev/$block" ] && break
        tries=$((tries + 1))
        [ $tries -lt 300 ] || { echo "no disk $name"; break; }
        sleep 0.1
    done
    ln -s "/dev/$block" "/dev/$name"
done </disks
sh /script
echo "@@ script ended with $?"
poweroff -f
"""


class Unavailable(Exception):
    """The guest cannot be had here; the text says why."""


class GuestFailed(Exception):
    """The guest died, hung or never came to the crash line."""


class AcceleratorFailed(GuestFailed):
    """KVM is here, but cannot run the guest (as in some nested machines)."""


class Accelerator:
    """KVM if it is here, until it fails; then the emulator."""

    name = "kvm" if os.access("/dev/kvm", os.R_OK | os.W_OK) else "tcg"


class Result:
    """status: the script's exit status, None after a crash; output: all it printed."""

    def __init__(self, status, output, seconds):
        self.status = status
        self.output = output
        self.seconds = seconds


def run(script, disks=None, files=None, timeout=120, crash_on=None, snapshot=False, tries=1, log=None, uncached=(),
        silence=None, memory_mib=MEMORY_MIB):
    """Run `script` in a guest.

    disks: {name: image path}; files: {path in the guest: bytes or host path}.
    crash_on: kill the guest as soon as a line equal to this is printed.
    snapshot: what the guest writes is thrown away. tries: boots in all if it
    times out, for the md driver's own recovery hangs now and then; with
    snapshot only. silence: seconds without a line that count as a timeout too.
    log: a file for the kernel's console. uncached: names of disks that say they
    have no volatile write cache; the others say they have one.
    """
    assert tries == 1 or snapshot
    kernel, modules = kernel_prepare()
    attempt = 1
    while True:
        with tempfile.TemporaryDirectory(prefix="stripelog-vm-") as work:
            try:
                return boot(work, kernel, modules, script, disks or {}, files or {}, timeout, crash_on, snapshot, log,
                            uncached, silence, memory_mib)
            except AcceleratorFailed:
                Accelerator.name = "tcg"
            except GuestFailed as failure:
                if attempt == tries or not str(failure).startswith("timeout"):
                    raise
                attempt += 1


# --- the guest ---


def boot(work, kernel, modules, script, disks, files, timeout, crash_on, snapshot, log, uncached, silence, memory_mib):
    initramfs = os.path.join(work, "initramfs")
    console = log or os.path.join(work, "console")
    initramfs_write(initramfs, modules, script, disks, files)
    command = ["qemu-system-x86_64", "-nodefaults", "-display", "none", "-no-reboot", "-machine", "q35"]
    accelerator = Accelerator.name
    command += ["-accel", accelerator, "-cpu", "max", "-m", str(memory_mib), "-kernel", kernel, "-initrd", initramfs]
    command += ["-append", "console=ttyS0 panic=-1 loglevel=6 quiet random.trust_cpu=on mitigations=off no_timer_check"]
    command += ["-serial", f"file:{console}", "-device", "virtio-serial-pci"]
    command += ["-chardev", "file,id=out,path=/dev/stdout", "-device", "virtserialport,chardev=out"]
    command += ["-device", "virtio-scsi-pci,id=bus"]
    for target, (name, path) in enumerate(disks.items()):
        command += ["-drive", f"file={path},format=raw,if=none,id=disk{target},cache=unsafe,discard=unmap"
                    + (",snapshot=on" if snapshot else "")]
        command += ["-device", f"scsi-hd,bus=bus.0,scsi-id={target},drive=disk{target}"
                    + (",write-cache=off" if name in uncached else "")]
    start = time.monotonic()
    # Its standard error goes to a file: QEMU warns about much that does not matter unless it fails.
    with open(os.path.join(work, "qemu.err"), "w+", encoding="utf-8") as errors:
        qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        try:
            status, output = guest_follow(qemu, errors, start + timeout, silence or timeout, crash_on)
        finally:
            if qemu.poll() is None:
                qemu.send_signal(signal.SIGKILL)
            qemu.wait()
            qemu.stdout.close()
        if status == "crashed":
            return Result(None, output, time.monotonic() - start)
        if isinstance(status, int) and crash_on is None:
            return Result(status, output, time.monotonic() - start)
        told = errors_told(errors)
    if accelerator == "kvm" and not output and "kvm" in told.lower():
        raise AcceleratorFailed(told)
    with open(console, encoding="utf-8", errors="replace") as text:
        tail = text.read()[-3000:]
    reason = f"never printed {crash_on}" if isinstance(status, int) else status
    raise GuestFailed(f"{reason}\n--- output\n{output[-3000:]}\n--- console\n{tail}\n--- qemu\n{told}")


def errors_told(errors):
    errors.seek(0)
    return errors.read()[-2000:]


def guest_follow(qemu, errors, deadline, silence, crash_on):
    """Read the script's lines until it ends, crashes on purpose, dies or takes too long."""
    lines = []
    pending = b""
    status = None
    heard = time.monotonic()
    while True:
        left = min(deadline, heard + silence) - time.monotonic()
        ready = left > 0 and select.select([qemu.stdout], [], [], min(left, 1.0))[0]
        if not ready:
            # A guest that KVM gives up stands still, and QEMU waits.
            if left > 1.0 and "KVM internal error" not in errors_told(errors):
                continue
            return ("timeout" if status is None else status), "\n".join(lines)
        piece = os.read(qemu.stdout.fileno(), 65536)
        if not piece:
            return ("the guest died" if status is None else status), "\n".join(lines)
        heard = time.monotonic()
        pending += piece
        *whole, pending = pending.split(b"\n")
        for raw in whole:
            line = raw.decode(errors="replace").rstrip("\r")
            if crash_on is not None and line == crash_on:
                qemu.send_signal(signal.SIGKILL)
                return "crashed", "\n".join(lines)
            ended = EXIT_LINE.match(line)
            if ended:
                status = int(ended.group(1))
            else:
                lines.append(line)


# --- its files ---


class Cpio:
    """An archive in the format the kernel unpacks ("newc"): a header in hex, the name, the content, each padded to 4."""

    def __init__(self, target):
        self.target = target
        self.inode = 0
        self.made = set()

    def entry(self, name, mode, content=b""):
        self.inode += 1
        header = "070701" + "".join(
            f"{n:08x}" for n in (self.inode, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name.encode()) + 1, 0))
        head = header.encode() + name.encode() + b"\0"
        self.target.write(head + b"\0" * (-len(head) % 4) + content + b"\0" * (-len(content) % 4))

    def directories(self, path):
        parts = path.split("/")[:-1]
        for depth in range(1, len(parts) + 1):
            directory = "/".join(parts[:depth])
            if directory and directory not in self.made:
                self.made.add(directory)
                self.entry(directory, stat.S_IFDIR | 0o755)

    def file(self, path, content, mode=0o755):
        path = path.lstrip("/")
        self.directories(path)
        self.entry(path, stat.S_IFREG | mode, content)

    def end(self):
        self.entry("TRAILER!!!", 0)


def initramfs_write(path, modules, script, disks, files):
    with open(path, "wb") as target:
        archive = Cpio(target)
        archive.file("init", INIT.encode())
        archive.file("script", script.encode())
        archive.file("disks", "".join(f"{i} {name}\n" for i, name in enumerate(disks)).encode())
        archive.file("bin/busybox", content_of(program_find("busybox")))
        for source, place in program_with_libraries(program_find("mdadm")):
            archive.file(place, content_of(source))
        archive.file("modules", "".join(f"{os.path.basename(module)}\n" for module in modules).encode())
        for module in modules:
            archive.file(f"lib/{os.path.basename(module)}", content_of(module))
        for place, content in files.items():
            archive.file(place, content if isinstance(content, bytes) else content_of(content))
        archive.end()


def content_of(path):
    with open(path, "rb") as source:
        return source.read()


def program_find(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/sbin:/usr/sbin:/bin:/usr/bin")
    if not path:
        raise Unavailable(f"{name} is not installed")
    return path


def program_with_libraries(program):
    listing = subprocess.run(["ldd", program], check=True, capture_output=True, text=True).stdout
    places = [(program, "/bin/" + os.path.basename(program))]
    for path in re.findall(r"(/\S+) \(0x", listing):
        places.append((path, path))
    return places


# --- the kernel ---


def kernel_prepare():
    """(kernel image, modules in loading order), downloaded and unpacked if need be."""
    for program in ("qemu-system-x86_64", "busybox", "mdadm"):
        program_find(program)
    if platform.machine() != "x86_64":
        raise Unavailable(f"no kernel package is known for {platform.machine()}")
    cache = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "stripelog-kernel")
    tree = os.path.join(cache, "kernel")
    if not os.path.isdir(tree):
        kernel_fetch(cache, tree)
    kernels = glob.glob(os.path.join(tree, "boot", "vmlinuz-*"))
    if not kernels:
        raise Unavailable(f"no kernel in {tree}; remove it to fetch it again")
    return kernels[0], modules_prepare(cache, tree)


def kernel_fetch(cache, tree):
    os.makedirs(cache, exist_ok=True)
    package = kernel_package()
    with tempfile.TemporaryDirectory(dir=cache) as work:
        # apt-get drops its rights to a user who may not write here, and says so; it works all the same.
        fetched = subprocess.run(["apt-get", "download", package], cwd=work, capture_output=True, text=True, check=False)
        debs = glob.glob(os.path.join(work, "*.deb"))
        if fetched.returncode or not debs:
            raise Unavailable(f"apt-get download {package}: {(fetched.stderr.strip() or 'failed').splitlines()[-1]}")
        unpacked = os.path.join(work, "kernel")
        subprocess.run(["dpkg-deb", "-x", debs[0], unpacked], check=True)
        os.chmod(unpacked, 0o755)
        try:
            os.rename(unpacked, tree)
        except OSError:
            if not os.path.isdir(tree):
                raise


def kernel_package():
    for package in KERNEL_PACKAGES:
        depends = subprocess.run(["apt-cache", "depends", package], capture_output=True, text=True, check=False).stdout
        for name in re.findall(r"Depends: (linux-image-[0-9]\S*)", depends):
            return name
    raise Unavailable("apt knows no kernel package (apt-get update?)")


def modules_prepare(cache, tree):
    """Paths of MODULES and what they need, unpacked, in loading order."""
    found = {}
    for path in glob.glob(os.path.join(tree, "**", "*.ko*"), recursive=True):
        found[module_name(path)] = path
    builtin = set()
    for listing in glob.glob(os.path.join(tree, "**", "modules.builtin"), recursive=True):
        with open(listing, encoding="utf-8") as text:
            builtin |= {module_name(line.strip()) for line in text}
    plain = os.path.join(cache, "modules")
    os.makedirs(plain, exist_ok=True)
    order = []
    seen = set()

    def add(name):
        if name in builtin or name in seen:
            return
        seen.add(name)
        if name not in found:
            if name in MODULES_OPTIONAL:
                return
            raise Unavailable(f"the kernel package has no module {name}")
        content = module_content(found[name])
        for needed in module_needs(content):
            add(needed)
        path = os.path.join(plain, name + ".ko")
        if not os.path.exists(path):
            with tempfile.NamedTemporaryFile(dir=plain, delete=False) as target:
                target.write(content)
            os.rename(target.name, path)
        order.append(path)

    for name in MODULES:
        add(name)
    return order


def module_name(path):
    return os.path.basename(path).split(".ko")[0].replace("-", "_")


def module_content(path):
    if path.endswith(".xz"):
        return lzma.decompress(content_of(path))
    if path.endswith(".gz"):
        return gzip.GzipFile(fileobj=io.BytesIO(content_of(path))).read()
    return content_of(path)


def module_needs(content):
    """The modules named by the "depends=" string of the .modinfo section."""
    match = re.search(rb"\0depends=([^\0]*)\0", content)
    names = match.group(1).decode() if match else ""
    return [name.replace("-", "_") for name in names.split(",") if name]
