//! What must hold for every file of the repository and no linter checks.
//!
//! | rule | for |
//! |---|---|
//! | a leftover mark names its issue: `(#12)` behind it | every text |
//! | at most [`rules::COLUMNS_MAX`] columns, lines with a URL and rows of tables excepted | Rust |
//! | at most [`rules::LINES_MAX`] lines | Rust |
//! | begins with a module header, `//!` | Rust |
//! | forbids `unsafe`, except in the runtime | crate roots |
//! | ends with exactly one newline, no spaces at line ends | Rust |
//! | no paths of one machine, no other registry | every text |
//! | packages come from crates.io | `Cargo.lock` |
//! | links lead to files that exist | Markdown |
//! | no binary file above [`rules::BINARY_BYTES_MAX`], `fixtures` excepted | every file |

mod files;
mod rules;

use std::path::Path;

use anyhow::bail;

/// One breach of a rule.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Path below the repository's root.
    path: String,
    /// Line, counted from 1; 0 for the whole file.
    line: usize,
    what: String,
}

/// Checks every file below `root`; prints each breach, and fails if there was one.
pub(crate) fn check(root: &Path) -> anyhow::Result<()> {
    let files = files::all(root)?;
    let mut findings = Vec::new();
    for file in &files {
        findings.extend(rules::check(file, root));
    }
    findings.sort();
    for Finding { path, line, what } in &findings {
        eprintln!("{path}:{line}: {what}");
    }
    if !findings.is_empty() {
        bail!(
            "{} breaches of the tidy rules, listed above",
            findings.len()
        );
    }
    println!("tidy: {} files", files.len());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .unwrap();
        check(root).unwrap();
    }
}
