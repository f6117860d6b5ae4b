# What the guest can be told to do. Every function ends with a status other than 0 if what it
# says was not so, and says why.

fail() {
    echo "$*"
    return 1
}

# Until "$@" is true, looking ten times a second for $1 seconds.
wait_for() {
    tries=$(($1 * 10))
    shift
    while [ "$tries" -gt 0 ]; do
        "$@" >/dev/null 2>&1 && return 0
        tries=$((tries - 1))
        usleep 100000
    done
    fail "not within its time: $*"
}

# Hundredths of a second since the boot.
now() {
    read -r up rest </proc/uptime
    echo "${up%.*}${up#*.}"
}

# discover PORTAL TARGET: SendTargets at one portal, and what it reports.
discover() {
    iscsiadm -m discovery -t sendtargets -p "$1" >/run/discovered || return 1
    grep " $2\$" /run/discovered || fail "$1 does not report $2: $(cat /run/discovered)"
}

setting() {
    iscsiadm -m node -T "$1" -o update -n "$2" -v "$3"
}

# credentials TARGET USER SECRET [TARGET_USER TARGET_SECRET]
credentials() {
    setting "$1" node.session.auth.authmethod CHAP &&
        setting "$1" node.session.auth.username "$2" &&
        setting "$1" node.session.auth.password "$3" || return 1
    [ -z "$4" ] && return
    setting "$1" node.session.auth.username_in "$4" &&
        setting "$1" node.session.auth.password_in "$5"
}

# timeouts TARGET REPLACEMENT NOOP_INTERVAL NOOP_TIMEOUT, in seconds
timeouts() {
    setting "$1" node.session.timeo.replacement_timeout "$2" &&
        setting "$1" "node.conn[0].timeo.noop_out_interval" "$3" &&
        setting "$1" "node.conn[0].timeo.noop_out_timeout" "$4"
}

# login TARGET PORTAL...: one session for each portal.
login() {
    target=$1
    shift
    for portal in "$@"; do
        iscsiadm -m node -T "$target" -p "$portal" --login || return 1
    done
    udevadm settle --timeout=20
}

# login_refused TARGET PORTAL: it has to be refused for its credentials.
login_refused() {
    setting "$1" node.session.initial_login_retry_max 1
    iscsiadm -m node -T "$1" -p "$2" --login 2>&1 | tee /run/refused
    grep -q "authorization failure" /run/refused && return
    fail "the login was not refused for its credentials"
}

logout() {
    iscsiadm -m node -T "$1" --logout && iscsiadm -m node -T "$1" -o delete
}

# The disks of a target's sessions: sda sdb ...
disks() {
    ls -l /dev/disk/by-path/ | grep -F -- "-iscsi-$1-lun-" | sed 's|.*/||' | sort -u
}

has_disks() {
    [ "$(disks "$1" | wc -l)" = "$2" ]
}

# single_disk TARGET: prints the device of its one session.
single_disk() {
    wait_for 20 has_disks "$1" 1 || return 1
    echo "/dev/$(disks "$1")"
}

# The multipath device over the sessions of a target, and how many of its paths are usable.
map_of() {
    disk=$(disks "$1" | head -n 1)
    multipathd show paths raw format "%d %m" | awk -v d="$disk" '$1 == d && $2 != "" {print $2}'
}

active_paths() {
    map=$(map_of "$1")
    multipathd show paths raw format "%m %t %T" |
        awk -v m="$map" '$1 == m && $2 == "active" && $3 == "ready"' | wc -l
}

has_active_paths() {
    [ -n "$(map_of "$1")" ] && [ "$(active_paths "$1")" = "$2" ]
}

# sends_to TARGET PORTAL: the path group in use has this portal's path, by ALUA's priority.
sends_to() {
    link="/dev/disk/by-path/ip-$2-iscsi-$1-lun-0"
    disk=$(basename "$(readlink "$link")")
    multipathd show map "$(map_of "$1")" topology >/run/topology
    grep -A 1 "prio=50 status=active" /run/topology | grep -q " $disk "
}

start_multipath() {
    multipathd && wait_for 20 multipathd show status
}

# give_up_after SECONDS: how long multipathd lets a lost session try to come back.
give_up_after() {
    sed -i "s/fast_io_fail_tmo .*/fast_io_fail_tmo $1/" /etc/multipath.conf
    multipathd reconfigure
}

# gives_up_after SECONDS: every session has been told so.
gives_up_after() {
    for session in /sys/class/iscsi_session/session*; do
        [ "$(cat "$session/recovery_tmo")" = "$1" ] || return 1
    done
}

# multipath_disk TARGET PATHS: waits for all paths and prints the device.
multipath_disk() {
    wait_for 30 has_active_paths "$1" "$2" || {
        multipathd show paths
        multipathd show maps topology
        return 1
    }
    udevadm settle --timeout=20
    echo "/dev/mapper/$(map_of "$1")"
}

# discard_reads_zero DEVICE: 4 MiB of other bytes, then zeros, read from the disk both times.
discard_reads_zero() {
    dd if=/dev/urandom of="$1" bs=1M count=4 oflag=direct 2>/dev/null || return 1
    if dd if="$1" iflag=direct bs=1M count=4 2>/dev/null | cmp -s -n 4194304 - /dev/zero; then
        fail "nothing was written"
        return 1
    fi
    blkdiscard -l 4194304 "$1" || return 1
    dd if="$1" iflag=direct bs=1M count=4 2>/dev/null | cmp -n 4194304 - /dev/zero
}

# make_filesystem ext4|xfs DEVICE DIRECTORY
make_filesystem() {
    # Checksums of files on another filesystem.
    rm -rf /run/load
    mkdir -p /run/load "$3"
    case $1 in
    ext4) mkfs.ext4 -q -F "$2" ;;
    xfs) mkfs.xfs -q -f "$2" ;;
    esac || return 1
    modprobe "$1" && mount -t "$1" "$2" "$3"
}

has_size() {
    [ "$(blockdev --getsize64 "$1")" = "$2" ]
}

# paths_have_size TARGET BYTES: the disk of every session.
paths_have_size() {
    for disk in $(disks "$1"); do
        has_size "/dev/$disk" "$2" || return 1
    done
}

# filesystem_kib DIRECTORY
filesystem_kib() {
    df -kP "$1" | awk 'NR == 2 {print $2}'
}

# grow TARGET DEVICE BYTES ext4|xfs DIRECTORY: the volume has grown; lets disks, multipath device and
# mounted filesystem follow, and prints the filesystem's size before and after.
grow() {
    before=$(filesystem_kib "$5")
    added=$((($3 - $(blockdev --getsize64 "$2")) / 1024))
    iscsiadm -m session -R >/run/rescanned || return 1
    wait_for 20 paths_have_size "$1" "$3" || return 1
    multipathd resize map "$(basename "$2")" >/run/resized || return 1
    wait_for 20 has_size "$2" "$3" || return 1
    case $4 in
    ext4) resize2fs "$2" ;;
    xfs) xfs_growfs "$5" ;;
    esac >/run/grown 2>&1 || fail "$(cat /run/grown)" || return 1
    after=$(filesystem_kib "$5")
    # What a filesystem keeps for itself is less than a tenth.
    [ $((after - before)) -gt $((added * 9 / 10)) ] ||
        fail "the filesystem has $after KiB, $before before" || return 1
    echo "$before $after"
}

# check_filesystem ext4|xfs DEVICE: after umount, without changing anything.
check_filesystem() {
    case $1 in
    ext4) e2fsck -fn "$2" ;;
    xfs) xfs_repair -n "$2" ;;
    esac
}

# load_start DIRECTORY FILES: writes files of 1 MiB, round and round, each synchronously to the
# disk; the checksum is taken from what was to be written and kept in the guest's memory.
load_start() {
    rm -f /run/load/stop /run/load/ended /run/load/progress
    load "$1" "$2" </dev/null >/run/load/log 2>&1 &
}

load() {
    n=0
    longest=0
    while [ ! -e /run/load/stop ]; do
        name=$((n % $2))
        dd if=/dev/urandom of=/run/load/next bs=64k count=16 2>/dev/null
        sum=$(md5sum </run/load/next)
        begin=$(now)
        if ! dd if=/run/load/next of="$1/$name" bs=64k conv=notrunc,fsync 2>/run/load/error; then
            mv /run/load/error /run/load/failed
            break
        fi
        took=$(($(now) - begin))
        echo "${sum%% *}  $1/$name" >/run/load/sum.$name
        [ "$took" -gt "$longest" ] && longest=$took
        n=$((n + 1))
        echo "$n $longest" >/run/load/progress.new
        mv /run/load/progress.new /run/load/progress
    done
    touch /run/load/ended
}

load_has_written() {
    [ -e /run/load/failed ] && return 0
    read -r written rest </run/load/progress && [ "$written" -ge "$1" ]
}

# load_reaches N SECONDS: the load runs and has written N more files than now.
load_reaches() {
    written=0
    [ -e /run/load/progress ] && read -r written rest </run/load/progress
    wait_for "$2" load_has_written $((written + $1)) || {
        cat /run/load/progress
        return 1
    }
    [ -e /run/load/failed ] || return 0
    fail "an I/O error: $(cat /run/load/failed)"
}

# load_stop SECONDS: prints files written and the longest write in hundredths of a second.
load_stop() {
    touch /run/load/stop
    wait_for "$1" test -e /run/load/ended || return 1
    if [ -e /run/load/failed ]; then
        fail "an I/O error: $(cat /run/load/failed)"
        return 1
    fi
    cat /run/load/progress
}

# verify: every file against its checksum, read from the disk.
verify() {
    sync
    echo 3 >/proc/sys/vm/drop_caches
    cat /run/load/sum.* >/run/load/sums
    md5sum -c /run/load/sums >/run/load/verified || {
        grep -v ": OK" /run/load/verified
        return 1
    }
    grep -c ": OK" /run/load/verified
}

# damage FILE: other bytes than those whose checksum is kept.
damage() {
    echo "damaged on purpose" | dd of="$1" conv=notrunc,fsync 2>/dev/null
}

# complain: as a filesystem would that met an error.
complain() {
    echo "EXT4-fs error (device dm-99): on purpose" >/dev/kmsg
}

# kernel_complaints PATTERN: what the kernel said since the last time, if it matches.
kernel_complaints() {
    dmesg >/run/dmesg.new
    seen=0
    [ -e /run/dmesg.lines ] && read -r seen </run/dmesg.lines
    wc -l </run/dmesg.new >/run/dmesg.lines
    tail -n "+$((seen + 1))" /run/dmesg.new >/run/dmesg
    ! grep -E "$1" /run/dmesg
}

# sessions: state of every session, as the kernel has it.
sessions() {
    for session in /sys/class/iscsi_session/session*; do
        [ -e "$session" ] || continue
        echo "$(cat "$session/state") $(cat "$session/targetname")"
    done
}

logged_in() {
    [ "$(sessions | grep -c "^LOGGED_IN $1\$")" = "$2" ]
}
