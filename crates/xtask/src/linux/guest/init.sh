#!/bin/dash
# The first process of the guest: brings up devices, network and daemons, then does what the
# control line (the second serial port) says. One line asks, "ID COMMAND"; the answer is the
# command's output, each line with "ID | " before it, and "ID = STATUS" at its end.
busybox=/bin/busybox
$busybox mkdir -p /proc /sys /dev /run /tmp /mnt /var/lib /var/run /applets
$busybox mount -t proc proc /proc
$busybox mount -t sysfs sysfs /sys
$busybox mount -t devtmpfs devtmpfs /dev
$busybox mount -t tmpfs tmpfs /run
$busybox mount -t tmpfs tmpfs /tmp
# Debian's own programs come first, busybox fills the gaps. (Its own shell would take its own
# programs before those of PATH.)
$busybox --install -s /applets
export PATH=/sbin:/usr/sbin:/bin:/usr/bin:/applets HOME=/ TERM=dumb
mkdir -p /dev/shm /run/lock/iscsi /run/load /etc/multipath /etc/iscsi /var/lib/iscsi
mount -t tmpfs tmpfs /dev/shm

depmod
for module in virtio_pci virtio_net sd_mod iscsi_tcp dm_mod dm_multipath dm_service_time \
    dm_round_robin scsi_dh_alua crc32c_generic; do
    modprobe "$module" || echo "init: no module $module" >/dev/kmsg
done
/lib/systemd/systemd-udevd --daemon
udevadm trigger --action=add
udevadm settle --timeout=30

ip link set eth0 up
ip addr add 10.0.2.15/24 dev eth0
# The host's loopback is the other end of the cable: the emulated network passes on whatever is
# not its own, so the portals are found under the addresses that discovery reports.
ip route del local 127.0.0.0/8 dev lo table local 2>/dev/null
sysctl -q -w net.ipv4.conf.all.route_localnet=1
sysctl -q -w net.ipv4.conf.eth0.route_localnet=1
ip route add 127.0.0.0/8 via 10.0.2.2 dev eth0 src 10.0.2.15

echo "InitiatorName=iqn.2026-11.example:linux-guest" >/etc/iscsi/initiatorname.iscsi
iscsid

. /steps.sh
exec 3<>/dev/ttyS1
stty -F /dev/ttyS1 -echo -onlcr
echo "ready $(uname -r)" >&3
while read -r id command <&3; do
    # The subshell keeps an "exit" or a syntax error from ending this loop.
    (eval "$command") >/run/answer 2>&1 </dev/null
    status=$?
    sed "s/^/$id | /" /run/answer >&3
    echo "$id = $status" >&3
done
poweroff -f
