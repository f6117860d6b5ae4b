//! The rules, each a function from a file to its breaches.

use std::path::Path;

use super::Finding;
use super::files::{Content, File};

/// Columns of a line of Rust, as `rustfmt.toml` says.
pub(super) const COLUMNS_MAX: usize = 100;
/// Lines of a Rust file: a longer one is a missing module.
pub(super) const LINES_MAX: usize = 700;
/// Bytes of a file that cannot be read in a review.
pub(super) const BINARY_BYTES_MAX: u64 = 100 * 1024;

/// Words that mark something left over. Written in halves, because this file is checked too.
const MARKS: [&str; 3] = [
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("X", "XX"),
];

/// What is true on one machine only: homes and build folders.
const MACHINE_PATHS: [&str; 5] = [
    concat!("/", "root/"),
    concat!("/", "home/"),
    concat!("/", "Users/"),
    concat!("/", "work/"),
    concat!("/", "mnt/"),
];

/// Signs of a registry other than crates.io in what cargo reads.
const REGISTRY_SETTINGS: [&str; 4] = ["[source.", "[registries", "replace-with", "sparse+"];

/// Hosts that stand in for a public registry on somebody's network.
const REGISTRY_HOSTS: [&str; 3] = [
    concat!("artifact", "ory"),
    concat!("jf", "rog"),
    concat!("pkg", ".dev"),
];

const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// The one crate that may use `unsafe`.
const UNSAFE_ALLOWED: &str = "crates/runtime/";

/// All breaches of one file.
pub(super) fn check(file: &File, root: &Path) -> Vec<Finding> {
    let path = file.path.as_str();
    let text = match &file.content {
        Content::Text(text) => text,
        Content::Binary(bytes) => return binary(path, *bytes).into_iter().collect(),
    };
    let mut found = Findings { path, list: vec![] };
    if path == "Cargo.lock" {
        lock(text, &mut found);
        return found.list;
    }
    leftovers(text, &mut found);
    places(text, &mut found);
    if path.ends_with(".rs") {
        rust(text, &mut found);
        crate_root(text, &mut found);
    }
    if path.ends_with(".toml") {
        registries(text, &mut found);
    }
    if path.ends_with(".md") {
        links(text, root, &mut found);
    }
    found.list
}

struct Findings<'a> {
    path: &'a str,
    list: Vec<Finding>,
}

impl Findings<'_> {
    fn add(&mut self, line: usize, what: impl Into<String>) {
        self.list.push(Finding {
            path: self.path.to_owned(),
            line,
            what: what.into(),
        });
    }
}

fn numbered(text: &str) -> impl Iterator<Item = (usize, &str)> {
    (1..).zip(text.lines())
}

fn binary(path: &str, bytes: u64) -> Option<Finding> {
    let fixture = path.split('/').any(|part| part == "fixtures");
    (bytes > BINARY_BYTES_MAX && !fixture).then(|| Finding {
        path: path.to_owned(),
        line: 0,
        what: format!("a binary file of {bytes} bytes outside a folder `fixtures`"),
    })
}

fn leftovers(text: &str, found: &mut Findings<'_>) {
    for (line, content) in numbered(text) {
        for mark in MARKS {
            if content.match_indices(mark).any(|(at, _)| {
                let before = content[..at].chars().next_back();
                let after = &content[at + mark.len()..];
                let word =
                    !before.is_some_and(is_word) && !after.chars().next().is_some_and(is_word);
                word && !names_issue(after)
            }) {
                found.add(
                    line,
                    format!("{mark} without an issue: write {mark}(#number)"),
                );
            }
        }
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn names_issue(after: &str) -> bool {
    let Some((number, _)) = after
        .strip_prefix("(#")
        .and_then(|rest| rest.split_once(')'))
    else {
        return false;
    };
    number == "number" || (!number.is_empty() && number.bytes().all(|b| b.is_ascii_digit()))
}

fn places(text: &str, found: &mut Findings<'_>) {
    for (line, content) in numbered(text) {
        let lower = content.to_ascii_lowercase();
        for path in MACHINE_PATHS {
            let own = content.match_indices(path).any(|(at, _)| {
                let before = content[..at].chars().next_back();
                // Inside a longer path or a URL it is somebody else's.
                !before.is_some_and(|c| is_word(c) || matches!(c, '/' | '.' | '-' | '~' | '}'))
            });
            if own {
                found.add(line, format!("{path} is a path of one machine"));
            }
        }
        for host in REGISTRY_HOSTS {
            if lower.contains(host) && lower.contains("://") {
                found.add(line, format!("{host} is a registry of one network"));
            }
        }
    }
}

fn rust(text: &str, found: &mut Findings<'_>) {
    let lines = text.lines().count();
    if lines > LINES_MAX {
        found.add(
            0,
            format!("{lines} lines; at most {LINES_MAX}: split the module"),
        );
    }
    let first = text.lines().find(|line| !line.trim().is_empty());
    if !first.is_some_and(|line| line.starts_with("//! ")) {
        found.add(
            1,
            "no module header: begin with `//! ` and what the module promises",
        );
    }
    if !text.ends_with('\n') || text.ends_with("\n\n") {
        found.add(lines, "a file ends with exactly one newline");
    }
    for (line, content) in numbered(text) {
        let columns = content.chars().count();
        // Neither a URL nor a row of a table in a doc comment can be wrapped.
        let whole = content.contains("://") || is_table_row(content);
        if columns > COLUMNS_MAX && !whole {
            found.add(line, format!("{columns} columns; at most {COLUMNS_MAX}"));
        }
        if content.ends_with([' ', '\t']) {
            found.add(line, "spaces at the end of the line");
        }
    }
}

fn is_table_row(line: &str) -> bool {
    let line = line.trim_start();
    let text = line
        .strip_prefix("//!")
        .or_else(|| line.strip_prefix("///"));
    text.is_some_and(|text| text.starts_with(" |") && text.ends_with('|'))
}

fn crate_root(text: &str, found: &mut Findings<'_>) {
    let root = found.path.ends_with("/src/lib.rs") || found.path.ends_with("/src/main.rs");
    let allowed = found.path.starts_with(UNSAFE_ALLOWED);
    if root && !allowed && !text.contains("#![forbid(unsafe_code)]") {
        found.add(
            0,
            "a crate other than the runtime says #![forbid(unsafe_code)]",
        );
    }
}

fn registries(text: &str, found: &mut Findings<'_>) {
    for (line, content) in numbered(text) {
        for setting in REGISTRY_SETTINGS {
            if content.contains(setting) {
                found.add(
                    line,
                    format!("{setting}: packages come from crates.io alone"),
                );
            }
        }
    }
}

fn lock(text: &str, found: &mut Findings<'_>) {
    for (line, content) in numbered(text) {
        let Some(source) = content.strip_prefix("source = ") else {
            continue;
        };
        if source.trim_matches('"') != CRATES_IO {
            found.add(line, format!("{source} is not crates.io"));
        }
    }
}

/// Links of the form `](target)` to places in the repository.
fn links(text: &str, root: &Path, found: &mut Findings<'_>) {
    let folder = Path::new(found.path).parent().unwrap_or(Path::new(""));
    for (line, content) in numbered(text) {
        for (at, _) in content.match_indices("](") {
            let Some((target, _)) = content[at + 2..].split_once(')') else {
                continue;
            };
            let file = target.split('#').next().unwrap_or(target);
            let elsewhere = target.contains("://") || target.starts_with("mailto:");
            if file.is_empty() || elsewhere {
                continue;
            }
            if !root.join(folder).join(file).exists() {
                found.add(line, format!("{target} does not exist"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: &str = env!("CARGO_MANIFEST_DIR");

    fn breaches(path: &str, text: &str) -> Vec<String> {
        let file = File::new(path, text.as_bytes().to_vec());
        let list = check(&file, Path::new(ROOT));
        list.into_iter().map(|finding| finding.what).collect()
    }

    fn rust_file(body: &str) -> String {
        format!("//! Header.\n{body}\n")
    }

    #[test]
    fn a_tidy_file_has_no_breach() {
        let text = rust_file("fn main() {}");
        assert_eq!(breaches("crates/x/src/y.rs", &text), [""; 0]);
    }

    #[test]
    fn a_leftover_needs_an_issue_number() {
        for mark in MARKS {
            let bare = rust_file(&format!("// {mark}: later"));
            assert_eq!(breaches("x.rs", &bare).len(), 1, "{mark}");
            let owned = rust_file(&format!("// {mark}(#12): later"));
            assert_eq!(breaches("x.rs", &owned).len(), 0, "{mark}");
            let part = rust_file(&format!("// A{mark}S"));
            assert_eq!(breaches("x.rs", &part).len(), 0, "{mark}");
        }
    }

    #[test]
    fn a_long_line_is_a_breach_unless_it_holds_a_url() {
        let long = "a".repeat(COLUMNS_MAX - 2);
        assert_eq!(breaches("x.rs", &rust_file(&format!("// {long}"))).len(), 1);
        let url = rust_file(&format!("// https://{long}"));
        assert_eq!(breaches("x.rs", &url).len(), 0);
        let row = rust_file(&format!("/// | {long} |"));
        assert_eq!(breaches("x.rs", &row).len(), 0);
    }

    #[test]
    fn a_long_file_is_a_breach() {
        let fits = rust_file(&"\n".repeat(LINES_MAX - 3).replace('\n', "//\n"));
        assert_eq!(breaches("x.rs", fits.trim_end_matches('\n')).len(), 1);
        let long = rust_file(&vec!["//"; LINES_MAX].join("\n"));
        assert_eq!(breaches("x.rs", &long).len(), 1);
    }

    #[test]
    fn a_missing_header_is_a_breach() {
        assert_eq!(breaches("x.rs", "fn main() {}\n").len(), 1);
    }

    #[test]
    fn a_crate_root_forbids_unsafe_code_except_in_the_runtime() {
        let text = rust_file("");
        let text = text.trim_end();
        let text = format!("{text}\n");
        assert_eq!(breaches("crates/x/src/lib.rs", &text).len(), 1);
        assert_eq!(breaches("crates/runtime/src/lib.rs", &text).len(), 0);
    }

    #[test]
    fn a_path_of_one_machine_is_a_breach() {
        let own = format!("see {}a/b", MACHINE_PATHS[1]);
        assert_eq!(breaches("README.md", &own).len(), 1);
        let foreign = format!("see https://example.com{}a", MACHINE_PATHS[1]);
        assert_eq!(breaches("README.md", &foreign).len(), 0);
    }

    #[test]
    fn another_registry_is_a_breach() {
        let toml = "[source.crates-io]\nreplace-with = \"mirror\"\n";
        assert_eq!(breaches(".cargo/config.toml", toml).len(), 2);
        let host = format!("index = \"https://{}.example\"", REGISTRY_HOSTS[0]);
        assert_eq!(breaches("x.toml", &host).len(), 1);
        let other = "source = \"git+https://example.com/x\"\n";
        assert_eq!(breaches("Cargo.lock", other).len(), 1);
        let official = format!("source = \"{CRATES_IO}\"\n");
        assert_eq!(breaches("Cargo.lock", &official).len(), 0);
    }

    #[test]
    fn a_link_leads_to_a_file() {
        assert_eq!(breaches("a.md", "[x](Cargo.toml#y) [z](#y)").len(), 0);
        assert_eq!(breaches("a.md", "[x](https://example.com)").len(), 0);
        assert_eq!(breaches("a.md", "[x](none.md)").len(), 1);
    }

    #[test]
    fn a_large_binary_file_belongs_to_fixtures() {
        let blob = vec![0; BINARY_BYTES_MAX as usize + 1];
        let check = |path: &str| check(&File::new(path, blob.clone()), Path::new(ROOT)).len();
        assert_eq!(check("crates/x/image.bin"), 1);
        assert_eq!(check("crates/x/fixtures/image.bin"), 0);
    }
}
