# Runs as root in a fresh Debian with systemd, in namespaces of its own: installs the package that is
# /tmp/natgw.deb, runs the gateway as its service does, removes it, and looks for what is left.
set -eu
say() { echo "check: $*"; }
refute() { if "$@"; then echo "not refused: $*"; exit 1; fi; }

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t bpf -o mode=0755 bpf /sys/fs/bpf
mkdir -p /dev/net
[ -e /dev/net/tun ] || mknod -m 666 /dev/net/tun c 10 200
ip link set lo up
ip link add out0 type veth peer out1
ip link add in0 type veth peer in1
for link in out0 out1 in0 in1; do ip link set "$link" up; done
ip address add 198.51.100.2/24 dev out0
ip address add 10.0.1.1/24 dev in0

# Not those that shadow-utils keep of the accounts, and not the note of when units were read, which
# systemd-analyze writes below.
files() {
    find / -xdev \( -path /proc -o -path /sys -o -path /dev -o -path /tmp -o -path /var/lib/dpkg \
        -o -path /var/lib/apt -o -path /var/log -o -path /var/cache \) -prune -o -print \
        | grep -v '^/etc/\(passwd\|group\|shadow\|gshadow\|subuid\|subgid\)-$' \
        | grep -v '^/run/systemd/systemd-units-load$' | sort
}
files > /tmp/before
cat /etc/passwd /etc/group > /tmp/accounts-before

say installs
dpkg --install /tmp/natgw.deb
natgw --version
for file in man1/natgw.1.gz man1/natgw-run.1.gz; do test -s "/usr/share/man/$file"; done
test -s /usr/share/bash-completion/completions/natgw
natgw check --config /usr/share/doc/natgw/examples/natgw.toml > /dev/null || [ $? = 2 ]

say "systemd-analyze verify is silent"
units="/lib/systemd/system/natgw.service /lib/systemd/system/sys-fs-bpf-natgw.mount"
# shellcheck disable=SC2086
said=$(systemd-analyze verify $units 2>&1) || true
[ -z "$said" ] || { echo "$said"; exit 1; }
say "systemd-analyze security rates it 2.0 or better"
systemd-analyze security --offline=true --threshold=20 --no-pager natgw.service | tail -1

say "runs as the service's user, with three capabilities"
printf '%s\n' '[gateway]' 'public = ["out0"]' 'private = ["in0"]' 'xdp_mode = "native"' \
    'sessions = 4096' '[[pool]]' 'addresses = ["198.51.100.10"]' '[[snat]]' \
    'source = ["10.0.1.0/24"]' > /etc/natgw/natgw.toml
mkdir -p /sys/fs/bpf/natgw /run/natgw
mount -t bpf -o nosuid,nodev,noexec,mode=0700,uid=natgw,gid=natgw bpf /sys/fs/bpf/natgw
chown -R natgw:natgw /sys/fs/bpf/natgw /run/natgw
capabilities=-all,+bpf,+net_admin,+perfmon
setpriv --reuid natgw --regid natgw --init-groups --no-new-privs --bounding-set "$capabilities" \
    --inh-caps "$capabilities" --ambient-caps "$capabilities" \
    natgw run --config /etc/natgw/natgw.toml --on-exit keep 2> /tmp/log &
daemon=$!
tries=0
until natgw status -o json 2> /dev/null | grep -q '"ready"'; do
    tries=$((tries + 1))
    [ "$tries" -lt 300 ] && kill -0 "$daemon" || { cat /tmp/log; exit 1; }
    sleep 0.1
done
refute grep WARN /tmp/log

say "members of natgw-view look, and change nothing"
view="setpriv --reuid 4242 --regid natgw-view --clear-groups --bounding-set -all natgw"
$view status > /dev/null
refute $view eip add 198.51.100.11 2> /tmp/refusal
grep -q 'only for those who may change' /tmp/refusal
stranger="setpriv --reuid 4242 --regid 4242 --clear-groups --bounding-set -all natgw"
refute $stranger status 2> /tmp/refusal
grep -q 'closed to this user' /tmp/refusal

say "a change is saved into the file"
natgw eip add 198.51.100.11 --save > /dev/null
grep -q 198.51.100.11 /etc/natgw/natgw.toml

kill -KILL "$daemon"
wait "$daemon" || true
[ -n "$(ls /sys/fs/bpf/natgw)" ]
say "removal leaves no pins, programs or settings"
dpkg --remove natgw
[ ! -e /sys/fs/bpf/natgw ]
ip -details link show out0 > /tmp/link
refute grep -q xdp /tmp/link
[ "$(cat /proc/sys/net/ipv4/conf/out0/forwarding)" = 0 ]
say "and purging no files or accounts"
dpkg --purge natgw
files > /tmp/after
diff /tmp/before /tmp/after
cat /etc/passwd /etc/group | diff /tmp/accounts-before -
say done
