//! Where the demo's nodes live, and how nothing is left of them.
//!
//! A marker file says that a directory is a demo's; its lock says that the demo runs. Only what a
//! demo made is ever removed: the marker and the directories `node-…`.

use std::fs::{self, DirBuilder, File, TryLockError};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::thread;

use thiserror::Error;

use crate::standard::tell;

const MARKER: &str = ".holdfast-demo";

/// Why the directory cannot be used. Nothing was changed.
#[derive(Debug, Error)]
pub(super) enum PlaceError {
    /// Somebody else's files.
    #[error("{0} is not empty and was not made by a demo: choose another with --dir")]
    NotOurs(PathBuf),
    /// Another demo.
    #[error("another demo runs in {0}: choose another directory with --dir")]
    InUse(PathBuf),
    /// The operating system refused.
    #[error("{path}: {error}")]
    System {
        /// Where.
        path: PathBuf,
        /// Its words.
        error: io::Error,
    },
}

/// A directory for one demo; dropping it removes what the demo made.
pub(super) struct Place {
    path: PathBuf,
    /// Made by this demo, so removed as well.
    made: bool,
    /// Holds the marker's lock.
    _marker: File,
}

impl Place {
    /// Takes `wanted`, or makes a new directory in the system's temporary one. What a demo that
    /// was killed has left there is removed.
    pub(super) fn take(wanted: Option<&Path>) -> Result<Self, PlaceError> {
        let path = match wanted {
            Some(path) => path.to_owned(),
            None => {
                let name = format!("holdfast-demo-{:016x}", rand::random::<u64>());
                std::env::temp_dir().join(name)
            }
        };
        let failed = |error| PlaceError::System {
            path: path.clone(),
            error,
        };
        let made = !path.exists();
        if made {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .map_err(failed)?;
        }
        let marker = path.join(MARKER);
        let is_empty = fs::read_dir(&path).map_err(failed)?.next().is_none();
        if !is_empty && !marker.exists() {
            return Err(PlaceError::NotOurs(path));
        }
        let marker = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(marker);
        let marker = marker.map_err(failed)?;
        match marker.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(PlaceError::InUse(path)),
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        remove_nodes(&path).map_err(failed)?;
        Ok(Self {
            path,
            made,
            _marker: marker,
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let removed = remove_nodes(&self.path)
            .and_then(|()| fs::remove_file(self.path.join(MARKER)))
            .and_then(|()| {
                if self.made {
                    fs::remove_dir(&self.path)
                } else {
                    Ok(())
                }
            });
        if let Err(error) = removed {
            tell(&format!(
                "cannot remove everything in {}: {error}",
                self.path.display()
            ));
        }
    }
}

fn remove_nodes(path: &Path) -> io::Result<()> {
    let mut nodes = Vec::new();
    for entry in fs::read_dir(path)? {
        let entry = entry?;
        let name = entry.file_name();
        let is_node = name
            .to_str()
            .and_then(|name| name.strip_prefix("node-"))
            .is_some_and(|number| number.parse::<u8>().is_ok());
        if is_node && entry.file_type()?.is_dir() {
            nodes.push(entry.path());
        }
    }
    // On a file system that is mounted with `discard` one file takes seconds.
    thread::scope(|scope| {
        let removals: Vec<_> = nodes
            .iter()
            .map(|node| scope.spawn(move || fs::remove_dir_all(node)))
            .collect();
        removals.into_iter().try_for_each(|removal| {
            let panicked = |_| Err(io::ErrorKind::Other.into());
            removal.join().unwrap_or_else(panicked)
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_of_its_own_leaves_nothing() {
        let place = Place::take(None).unwrap();
        let path = place.path().to_owned();
        fs::create_dir(path.join("node-1")).unwrap();
        fs::write(path.join("node-1/journal"), b"data").unwrap();
        drop(place);
        assert!(!path.exists());
    }

    #[test]
    fn only_what_a_demo_made_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("thesis.txt"), b"mine").unwrap();
        let refused = Place::take(Some(folder.path()));
        assert!(matches!(refused, Err(PlaceError::NotOurs(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_second_demo_waits_for_none_and_says_so_and_a_dead_one_is_swept_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let first = Place::take(Some(path)).unwrap();
        assert!(matches!(Place::take(Some(path)), Err(PlaceError::InUse(_))));
        drop(first);
        assert_eq!(fs::read_dir(path).unwrap().count(), 0);
        fs::write(path.join(MARKER), b"").unwrap();
        fs::create_dir(path.join("node-2")).unwrap();
        let second = Place::take(Some(path)).unwrap();
        assert!(!path.join("node-2").exists());
        drop(second);
        assert!(path.exists(), "it was there before");
    }
}
