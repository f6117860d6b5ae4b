//! A Debian kernel and the tools of an initiator, from packages that are unpacked but never
//! installed.
//!
//! Promise: nothing outside the cache directory is changed. What has been unpacked once is used
//! again, without asking any mirror; the cache names its list of packages, so a longer list means
//! a new download.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use super::archive::Archive;
use crate::process::{capture, find, output_of};

/// About 85 MB.
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(300);
const UNPACK_LIMIT: Duration = Duration::from_secs(60);
const QUESTION_LIMIT: Duration = Duration::from_secs(60);

/// Depends on the current kernel's package, whose name carries its version.
const KERNEL: &str = "linux-image-amd64";

/// Programs that the guest runs, then the libraries that they need. Named one by one: the
/// dependencies of these packages would bring Perl and Python.
const PACKAGES: [&str; 50] = [
    "busybox-static",
    "dash",
    "dmsetup",
    "e2fsprogs",
    "kmod",
    "kpartx",
    "mount",
    "multipath-tools",
    "open-iscsi",
    "sg3-utils",
    "udev",
    "util-linux",
    "xfsprogs",
    "libacl1",
    "libaio1",
    "libattr1",
    "libblkid1",
    "libbsd0",
    "libc6",
    "libcap2",
    "libcom-err2",
    "libdevmapper1.02.1",
    "libedit2",
    "libext2fs2",
    "libfdisk1",
    "libgcc-s1",
    "libgcrypt20",
    "libgpg-error0",
    "libinih1",
    "libisns0",
    "libjson-c5",
    "libkmod2",
    "liblz4-1",
    "liblzma5",
    "libmd0",
    "libmount1",
    "libopeniscsiusr",
    "libpcre2-8-0",
    "libreadline8",
    "libselinux1",
    "libsgutils2-1.46-2",
    "libsmartcols1",
    "libss2",
    "libssl3",
    "libsystemd0",
    "libtinfo6",
    "libudev1",
    "liburcu8",
    "libuuid1",
    "libzstd1",
];

/// Parts of the packages that the guest has no use for.
const UNWANTED: [&str; 9] = [
    "boot",
    "lib/systemd/system",
    "lib/udev/hwdb.d",
    "usr/include",
    "usr/lib/modules",
    "usr/lib/systemd",
    "usr/lib/x86_64-linux-gnu/gconv",
    "usr/lib/x86_64-linux-gnu/perl",
    "usr/share",
];

/// Folders and beginnings of names of the kernel modules that may be needed, below `kernel/`.
const MODULES: [&str; 25] = [
    "arch/x86/crypto/crc",
    "block/",
    "crypto/",
    "drivers/dax/",
    "drivers/md/dm-mod",
    "drivers/md/dm-multipath",
    "drivers/md/dm-queue-length",
    "drivers/md/dm-round-robin",
    "drivers/md/dm-service-time",
    "drivers/net/net_failover",
    "drivers/net/virtio_net",
    "drivers/scsi/device_handler/scsi_dh_alua",
    "drivers/scsi/iscsi",
    "drivers/scsi/libiscsi",
    "drivers/scsi/scsi_",
    "drivers/scsi/sd_mod",
    "drivers/scsi/sg",
    "drivers/virtio/",
    "fs/ext4/",
    "fs/jbd2/",
    "fs/mbcache",
    "fs/xfs/",
    "lib/",
    "mm/",
    "net/core/",
];

/// What a guest boots from.
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
}

/// Fetches what is not there yet and packs the guest's root anew.
pub(crate) fn image(cache: &Path) -> anyhow::Result<Image> {
    for program in ["apt-get", "apt-cache", "dpkg"] {
        let missing = format!("{program} is missing: the guest is made from Debian packages");
        ensure!(find(program).is_some(), missing);
    }
    let root = unpacked(cache)?;
    let kernel = only_entry(&root.join("boot"), "vmlinuz-")?;
    let initramfs = cache.join("initramfs");
    pack(&root, &initramfs).with_context(|| format!("packing {}", initramfs.display()))?;
    Ok(Image { kernel, initramfs })
}

/// The directory with all packages unpacked.
fn unpacked(cache: &Path) -> anyhow::Result<PathBuf> {
    let root = cache.join("root");
    let list = cache.join("packages");
    let wanted = [KERNEL].iter().chain(&PACKAGES);
    let wanted = wanted.copied().collect::<Vec<_>>().join("\n");
    // Written last, so that a half-filled cache is not taken for a whole one.
    if fs::read_to_string(&list).is_ok_and(|there| there == wanted) {
        return Ok(root);
    }
    let downloads = cache.join("downloads");
    for directory in [&root, &downloads] {
        if directory.exists() {
            fs::remove_dir_all(directory)?;
        }
        fs::create_dir_all(directory)?;
    }
    println!("fetching a Debian kernel and the initiator's packages");
    let mut download = Command::new("apt-get");
    download
        .args(["download", "--quiet"])
        .arg(kernel_package()?);
    download.args(PACKAGES);
    output_of(download.current_dir(&downloads), DOWNLOAD_LIMIT)
        .context("try `apt-get update` if the packages are not found")?;
    for entry in fs::read_dir(&downloads)? {
        let mut unpack = Command::new("dpkg");
        unpack.arg("--extract").arg(entry?.path()).arg(&root);
        output_of(&mut unpack, UNPACK_LIMIT)?;
    }
    fs::remove_dir_all(&downloads)?;
    fs::write(&list, wanted)?;
    Ok(root)
}

/// The package that [`KERNEL`] stands for at the moment.
fn kernel_package() -> anyhow::Result<String> {
    let mut question = Command::new("apt-cache");
    question.args(["depends", "--important", KERNEL]);
    let said = capture(&mut question, QUESTION_LIMIT)?.text;
    let package = said
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"));
    let package =
        package.with_context(|| format!("apt knows no {KERNEL}: try `apt-get update`\n{said}"))?;
    Ok(format!("linux-image-{package}"))
}

fn pack(root: &Path, to: &Path) -> anyhow::Result<()> {
    let modules = only_entry(&root.join("lib/modules"), "")?;
    let modules = modules.strip_prefix(root)?.to_str();
    let modules = modules.context("the kernel's version is not a word")?;
    let file = std::io::BufWriter::new(fs::File::create(to)?);
    let mut archive = Archive::new(file);
    for directory in ["dev", "proc", "run", "sys", "tmp"] {
        archive.directory(directory)?;
    }
    archive.tree(root, &|path| is_wanted(path, modules))?;
    archive.file("init", 0o755, include_bytes!("guest/init.sh"))?;
    archive.file("steps.sh", 0o644, include_bytes!("guest/steps.sh"))?;
    let multipath = include_bytes!("guest/multipath.conf");
    archive.file("etc/multipath.conf", 0o644, multipath)?;
    // iscsid serves nobody whose name it does not find.
    archive.file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n")?;
    archive.file("etc/group", 0o644, b"root:x:0:\n")?;
    archive.end()?;
    Ok(())
}

fn is_wanted(path: &str, modules: &str) -> bool {
    let module = path
        .strip_prefix(modules)
        .and_then(|rest| rest.strip_prefix("/kernel/"));
    if let Some(module) = module {
        // A folder on the way to a wanted module, or the module itself.
        return MODULES
            .iter()
            .any(|wanted| module.starts_with(wanted) || wanted.starts_with(module));
    }
    !UNWANTED.contains(&path)
}

/// The one entry of a directory whose name begins so.
fn only_entry(directory: &Path, beginning: &str) -> anyhow::Result<PathBuf> {
    let entries = fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    let mut found: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(beginning))
        })
        .collect();
    let one = found.pop().filter(|_| found.is_empty());
    one.with_context(|| format!("{} has not one {beginning}*", directory.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_of_the_list_are_wanted_with_the_folders_on_the_way() {
        let wanted = |path: &str| is_wanted(path, "lib/modules/6");
        assert!(wanted("lib/modules/6/modules.order"));
        assert!(wanted("lib/modules/6/kernel/drivers"));
        assert!(wanted("lib/modules/6/kernel/drivers/md"));
        assert!(wanted("lib/modules/6/kernel/drivers/md/dm-multipath.ko"));
        assert!(!wanted("lib/modules/6/kernel/drivers/md/raid1.ko"));
        assert!(!wanted("lib/modules/6/kernel/sound"));
    }

    #[test]
    fn programs_are_wanted_and_manuals_are_not() {
        assert!(is_wanted("sbin/iscsid", "lib/modules/6"));
        assert!(!is_wanted("usr/share", "lib/modules/6"));
    }
}
