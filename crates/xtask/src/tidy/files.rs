//! The files of the repository: everything but what is built.

use std::fs;
use std::path::Path;

use anyhow::Context as _;

/// Folders that hold no source, wherever they are. (In a second work tree `.git` is a file.)
const NOT_SOURCE: [&str; 2] = [".git", "target"];

/// One file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct File {
    /// Path below the root, with `/` between its parts.
    pub(super) path: String,
    pub(super) content: Content,
}

/// What is in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Text(String),
    /// Not UTF-8, or with a zero byte: so many bytes.
    Binary(u64),
}

impl File {
    pub(super) fn new(path: impl Into<String>, bytes: Vec<u8>) -> Self {
        let length = bytes.len() as u64;
        let content = match String::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Content::Text(text),
            Ok(_) | Err(_) => Content::Binary(length),
        };
        Self {
            path: path.into(),
            content,
        }
    }
}

/// All files below `root`, in the order of their paths.
pub(super) fn all(root: &Path) -> anyhow::Result<Vec<File>> {
    let mut files = Vec::new();
    let mut folders = vec![String::new()];
    while let Some(folder) = folders.pop() {
        let entries = fs::read_dir(root.join(&folder)).with_context(|| folder.clone())?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            let path = if folder.is_empty() {
                name.to_string()
            } else {
                format!("{folder}/{name}")
            };
            let kind = entry.file_type()?;
            if NOT_SOURCE.contains(&name.as_ref()) {
                continue;
            }
            if kind.is_dir() {
                folders.push(path);
            } else if kind.is_file() && !name.ends_with(".log") {
                let bytes = fs::read(entry.path()).with_context(|| path.clone())?;
                files.push(File::new(path, bytes));
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn built_files_are_left_out() {
        let root = tempfile::tempdir().unwrap();
        for path in ["a/b.rs", "target/c.rs", "a/target/d.rs", ".ci/run", "e.log"] {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "x").unwrap();
        }
        let paths: Vec<String> = all(root.path())
            .unwrap()
            .into_iter()
            .map(|f| f.path)
            .collect();
        assert_eq!(paths, [".ci/run", "a/b.rs"]);
    }

    #[test]
    fn bytes_that_are_no_text_are_binary() {
        assert_eq!(File::new("x", vec![0xff; 3]).content, Content::Binary(3));
        assert_eq!(File::new("x", b"a\0".to_vec()).content, Content::Binary(2));
        let text = Content::Text("a".to_owned());
        assert_eq!(File::new("x", b"a".to_vec()).content, text);
    }
}
