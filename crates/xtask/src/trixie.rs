//! The conformance tests of Debian 13, from packages that are unpacked but never installed, on
//! whatever Debian this is.
//!
//! Promise: nothing outside the cache directory is changed, apt's own lists included. What has been
//! unpacked once is used again without asking any mirror.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, ensure};

use crate::process::{find, output_of};

const CACHE: &str = "target/debian-13";
const MIRROR: &str = "http://deb.debian.org/debian";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const UPDATE_LIMIT: Duration = Duration::from_secs(120);
const DOWNLOAD_LIMIT: Duration = Duration::from_secs(120);
const UNPACK_LIMIT: Duration = Duration::from_secs(60);

/// The tests and every library that they load.
const PACKAGES: [&str; 8] = [
    "libiscsi-bin",
    "libiscsi7",
    "libc6",
    "libcunit1",
    "libibverbs1",
    "librdmacm1t64",
    "libnl-3-200",
    "libnl-route-3-200",
];

/// How to run a program of the packages: with their own loader and libraries.
#[derive(Clone, Debug)]
pub(crate) struct Program {
    loader: PathBuf,
    libraries: PathBuf,
    program: PathBuf,
}

impl Program {
    /// The program, to be given its arguments.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.loader);
        command
            .arg("--library-path")
            .arg(&self.libraries)
            .arg(&self.program);
        command
    }
}

/// `iscsi-test-cu`; fetches what is not there yet.
pub(crate) fn iscsi_test_cu() -> anyhow::Result<Program> {
    let root = unpacked(Path::new(CACHE))?;
    let libraries = root.join("usr/lib/x86_64-linux-gnu");
    let program = Program {
        loader: libraries.join("ld-linux-x86-64.so.2"),
        program: root.join("usr/bin/iscsi-test-cu"),
        libraries,
    };
    for part in [&program.loader, &program.program] {
        ensure!(part.is_file(), "the packages hold no {}", part.display());
    }
    Ok(program)
}

fn unpacked(cache: &Path) -> anyhow::Result<PathBuf> {
    let (root, list) = (cache.join("root"), cache.join("packages"));
    let wanted = PACKAGES.join("\n");
    // Written last, so that a half-filled cache is not taken for a whole one.
    if fs::read_to_string(&list).is_ok_and(|there| there == wanted) {
        return Ok(root);
    }
    for program in ["apt-get", "dpkg"] {
        ensure!(
            find(program).is_some(),
            "{program} is missing: the tests are Debian packages"
        );
    }
    println!("fetching libiscsi's tests from Debian 13");
    if cache.exists() {
        fs::remove_dir_all(cache)?;
    }
    for directory in [
        "root",
        "downloads",
        "apt/lists/partial",
        "apt/cache/archives/partial",
    ] {
        fs::create_dir_all(cache.join(directory))?;
    }
    let cache = cache.canonicalize()?;
    let sources = cache.join("apt/sources.list");
    fs::write(
        &sources,
        format!("deb [signed-by={KEYRING}] {MIRROR} trixie main\n"),
    )?;
    let apt = |action: &str| {
        let mut command = Command::new("apt-get");
        let at = |setting: &str, path: &str| format!("{setting}={}", cache.join(path).display());
        let settings = [
            at("Dir::Etc::sourcelist", "apt/sources.list"),
            "Dir::Etc::sourceparts=-".to_owned(),
            at("Dir::State::lists", "apt/lists"),
            at("Dir::Cache", "apt/cache"),
            // What is installed here has nothing to do with it.
            "Dir::State::status=/dev/null".to_owned(),
        ];
        settings.iter().for_each(|setting| {
            command.args(["-o", setting]);
        });
        // The user that root's apt turns into may not reach the cache.
        command.args(["-o", "APT::Sandbox::User=root", "--quiet", action]);
        command.current_dir(cache.join("downloads"));
        command
    };
    output_of(&mut apt("update"), UPDATE_LIMIT)?;
    output_of(apt("download").args(PACKAGES), DOWNLOAD_LIMIT)?;
    for entry in fs::read_dir(cache.join("downloads"))? {
        let mut unpack = Command::new("dpkg");
        unpack
            .arg("--extract")
            .arg(entry?.path())
            .arg(cache.join("root"));
        output_of(&mut unpack, UNPACK_LIMIT)?;
    }
    fs::write(&list, wanted).context("noting what was unpacked")?;
    Ok(root)
}
