#!/bin/bash
# PID 1 of a lab's machine, until it becomes systemd: over a throw-away overlay of the host's root file system.
# In namespaces (namespaces.py) or, with lab_address set, in a user-mode-linux guest (nfs.py).
# $lab is the machine's folder; its file `binds` has lines "SOURCE TARGET rw|ro": folders of the host, and where.
set -u
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

if [ -n "${lab_address:-}" ]; then
  mount -t proc proc /proc
  mount -t sysfs sysfs /sys
  mount -t tmpfs tmpfs /run
  for module in overlay nfsv4; do modprobe -d "$lab" "$module"; done
  ip link set lo up
  ip addr add "$lab_address/24" dev vec0
  ip link set vec0 up
fi

place=$lab/overlay
root=$place/root
mount -t tmpfs -o mode=755 tmpfs "$place"
mkdir "$place/upper" "$place/work" "$root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$place/upper,workdir=$place/work" "$root"
cd "$root" || exit 1

if [ -n "${lab_address:-}" ]; then
  for special in proc sys dev; do mount --move "/$special" "$special"; done
else
  mount -t proc proc proc
  mount --bind proc/sys proc/sys
  mount -o remount,bind,ro proc/sys
  mount -t sysfs -o ro sysfs sys
  mount -t tmpfs -o mode=755,nosuid tmpfs dev
  mkdir dev/pts dev/shm
  for name in null zero full random urandom tty; do : > "dev/$name"; mount --bind "/dev/$name" "dev/$name"; done
  mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts
  ln -s pts/ptmx dev/ptmx
  ln -s /proc/self/fd dev/fd
  mount -t tmpfs -o mode=1777 tmpfs dev/shm
  if [ -n "$lab_controllers" ]; then # the first hierarchy of control groups, beside the second
    mount -t tmpfs -o mode=755 tmpfs sys/fs/cgroup
    mkdir sys/fs/cgroup/unified sys/fs/cgroup/systemd
    mount -t cgroup2 cgroup2 sys/fs/cgroup/unified
    mount -t cgroup -o none,name=systemd cgroup sys/fs/cgroup/systemd
    for name in $lab_controllers; do mkdir "sys/fs/cgroup/$name"; mount -t cgroup -o "$name" cgroup "sys/fs/cgroup/$name"; done
  else
    mount -t cgroup2 cgroup2 sys/fs/cgroup
  fi
  ip link set lo up
fi
mount -t tmpfs -o mode=755,nosuid,nodev tmpfs run

while read -r source target mode; do
  mkdir -p "$root$target"
  above=$target
  while above=$(dirname "$above"); [ "$above" != / ]; do chmod a+x "$root$above"; done # e.g. an interpreter below /root
  if [ -n "${lab_address:-}" ]; then
    mount -t hostfs -o "$source" none "$root$target"
  else
    mount --bind "$source" "$root$target"
  fi
  [ "$mode" = rw ] || mount -o "remount,bind,ro" "$root$target"
done < "$lab/binds"
if [ -n "${lab_address:-}" ]; then
  mkdir -p "$root/checkpoints"
  mount -t nfs -o "$lab_mount" "$lab_server:/checkpoints" "$root/checkpoints" || echo "no mount"
fi

# What would look for hardware, change the host's clock or kernel, or tidy up the host's /tmp.
units=etc/systemd/system
for unit in systemd-sysctl.service systemd-modules-load.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \
  sys-kernel-debug.mount sys-kernel-tracing.mount dev-hugepages.mount systemd-remount-fs.service rpcbind.socket \
  systemd-timesyncd.service systemd-tmpfiles-setup-dev.service systemd-tmpfiles-clean.timer systemd-logind.service \
  systemd-udevd.service systemd-udev-trigger.service systemd-random-seed.service; do
  ln -sf /dev/null "$units/$unit"
done
mkdir -p etc/tmpfiles.d
ln -sf /dev/null etc/tmpfiles.d/tmp.conf
: > etc/machine-id
basename "$lab" > etc/hostname
[ -n "${lab_address:-}" ] && cp "$lab/lab-agent.service" "$units/" && mkdir -p "$units/basic.target.wants" &&
  ln -s ../lab-agent.service "$units/basic.target.wants/"

mkdir -p .old
pivot_root . .old
exec env -i container="${lab_container:-lab}" PATH="$PATH" /bin/sh -c \
  'umount -l /.old; exec /lib/systemd/systemd --system --unit=basic.target --log-target=journal-or-kmsg --show-status=no'
