//! The archive that a Linux kernel unpacks as its first root: cpio in the form "newc".
//!
//! Source: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. Everything
//! belongs to user 0; directories come before what lies in them.

use std::fs;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

const DIRECTORY: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const LINK: u32 = 0o120_000;
const TRAILER: &[u8] = b"TRAILER!!!";

/// An archive that is being written; [`Archive::end`] makes it whole.
pub(crate) struct Archive<W> {
    output: W,
    number: u32,
}

impl<W: Write> Archive<W> {
    pub(crate) fn new(output: W) -> Self {
        Self { output, number: 0 }
    }

    /// A file of these bytes; the path has no leading slash.
    pub(crate) fn file(&mut self, path: &str, mode: u32, bytes: &[u8]) -> io::Result<()> {
        self.entry(path.as_bytes(), REGULAR | mode, bytes)
    }

    /// An empty directory.
    pub(crate) fn directory(&mut self, path: &str) -> io::Result<()> {
        self.entry(path.as_bytes(), DIRECTORY | 0o755, b"")
    }

    /// Everything below `root` whose path from there `wants` wants; what is not wanted is not
    /// looked into.
    pub(crate) fn tree(&mut self, root: &Path, wants: &dyn Fn(&str) -> bool) -> io::Result<()> {
        self.below(root, root, wants)
    }

    fn below(
        &mut self,
        root: &Path,
        directory: &Path,
        wants: &dyn Fn(&str) -> bool,
    ) -> io::Result<()> {
        let entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
        let mut paths: Vec<_> = entries.into_iter().map(|entry| entry.path()).collect();
        paths.sort();
        for path in paths {
            let Some(name) = path.strip_prefix(root).ok().and_then(Path::to_str) else {
                continue;
            };
            if !wants(name) {
                continue;
            }
            let metadata = path.symlink_metadata()?;
            let mode = metadata.permissions().mode() & 0o7777;
            if metadata.is_symlink() {
                let target = fs::read_link(&path)?;
                let target = target.as_os_str().as_bytes();
                self.entry(name.as_bytes(), LINK | 0o777, target)?;
            } else if metadata.is_dir() {
                self.entry(name.as_bytes(), DIRECTORY | mode, b"")?;
                self.below(root, &path, wants)?;
            } else if metadata.is_file() {
                self.entry(name.as_bytes(), REGULAR | mode, &fs::read(&path)?)?;
            }
        }
        Ok(())
    }

    /// Closes the archive and gives back what it was written to.
    pub(crate) fn end(mut self) -> io::Result<W> {
        self.entry(TRAILER, 0, b"")?;
        self.output.flush()?;
        Ok(self.output)
    }

    fn entry(&mut self, name: &[u8], mode: u32, bytes: &[u8]) -> io::Result<()> {
        let length = |bytes: &[u8]| {
            u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))
        };
        // Entries that share a number would be taken for names of one file.
        self.number += 1;
        let links = if mode & DIRECTORY != 0 { 2 } else { 1 };
        let (file_bytes, name_bytes) = (length(bytes)?, length(name)? + 1);
        // number, mode, user, group, links, time, size, four device numbers, name, checksum
        let fields = [
            self.number,
            mode,
            0,
            0,
            links,
            0,
            file_bytes,
            0,
            0,
            0,
            0,
            name_bytes,
            0,
        ];
        let mut head = b"070701".to_vec();
        for field in fields {
            head.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        head.extend_from_slice(name);
        head.push(0);
        pad(&mut head);
        self.output.write_all(&head)?;
        self.output.write_all(bytes)?;
        let rest = bytes.len().next_multiple_of(4) - bytes.len();
        self.output.write_all(&[0; 3][..rest])
    }
}

fn pad(bytes: &mut Vec<u8>) {
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Mode, name and content of every entry, read by the format's own rules.
    fn entries(mut bytes: &[u8]) -> Vec<(u32, String, Vec<u8>)> {
        let mut entries = Vec::new();
        while !bytes.is_empty() {
            assert_eq!(&bytes[..6], b"070701");
            let field = |index: usize| {
                let digits = &bytes[6 + 8 * index..14 + 8 * index];
                let digits = std::str::from_utf8(digits).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(bytes[110..109 + name_size].to_vec()).unwrap();
            let content = (110 + name_size).next_multiple_of(4);
            let next = (content + size).next_multiple_of(4);
            entries.push((mode, name, bytes[content..content + size].to_vec()));
            bytes = &bytes[next..];
        }
        entries
    }

    #[test]
    fn a_tree_is_archived_with_modes_and_links_and_without_what_is_not_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("bin")).unwrap();
        fs::create_dir(root.join("share")).unwrap();
        fs::write(root.join("share/manual"), b"long").unwrap();
        fs::write(root.join("bin/tool"), b"12345").unwrap();
        let executable = fs::Permissions::from_mode(0o755);
        fs::set_permissions(root.join("bin/tool"), executable.clone()).unwrap();
        fs::set_permissions(root.join("bin"), executable).unwrap();
        std::os::unix::fs::symlink("tool", root.join("bin/other")).unwrap();
        let mut archive = Archive::new(Vec::new());
        archive.file("init", 0o755, b"#!").unwrap();
        archive.tree(root, &|path| path != "share").unwrap();
        let expected = [
            (0o100_755, "init", &b"#!"[..]),
            (0o040_755, "bin", b""),
            (0o120_777, "bin/other", b"tool"),
            (0o100_755, "bin/tool", b"12345"),
            (0, "TRAILER!!!", b""),
        ];
        let expected =
            expected.map(|(mode, name, content)| (mode, name.to_owned(), content.to_vec()));
        assert_eq!(entries(&archive.end().unwrap()), expected);
    }
}
