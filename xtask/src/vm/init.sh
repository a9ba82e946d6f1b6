#!/usr/bin/sh
# First process of the guest. Runs the commands in /vm/commands in the order of their names and
# powers off. The kernel's messages go to the first serial port; what the host parses goes to the
# second, so that a kernel message never lands inside a command's output.
/usr/bin/busybox --install -s /opt/busybox
export PATH=/usr/sbin:/usr/bin:/opt/busybox HOME=/root TERM=dumb USER=root

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
for directory in /dev/shm /run /tmp; do mount -t tmpfs tmpfs "$directory"; done
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs tracefs /sys/kernel/tracing
mount -t cgroup2 cgroup2 /sys/fs/cgroup
ln -sf /proc/self/fd /dev/fd
hostname natgw-vm

port=/dev/ttyS1
stty -F "$port" raw -echo # no CR before each LF
# `ip netns` bind-mounts below here and makes it shared itself; the root must allow that.
mount --make-rshared / 2>/dev/null
ip link set lo up
while read -r module; do
    modprobe "$module" || echo "VM-NOTE: module $module did not load" >"$port"
done </vm/modules

. /vm/environment
echo "VM-READY: $(uname -r)" >"$port"
for command in /vm/commands/*; do
    echo "VM-BEGIN: ${command##*/}" >"$port"
    sh "$command" </dev/null >"$port" 2>&1
    echo "VM-EXIT: ${command##*/} $?" >"$port"
done
sync
poweroff -f
