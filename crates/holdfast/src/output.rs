//! Listings in the form that was asked for, and what becomes of those that cannot be written.
//!
//! A reader that has closed the pipe (`| head`) has what it wanted: the command ends with the code
//! that it would have had. Any other failure to write is one of the command, which then says what
//! has been changed. A secret that nobody could read is a failure whatever the reason.

mod listing;

use std::io;

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

pub(crate) use listing::Listing;

use crate::failure::Failure;
use crate::standard;

/// The form of a listing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people; fits the terminal.
    #[default]
    Table,
    /// One JSON document with every field.
    Json,
    /// One YAML document with every field.
    Yaml,
    /// The table's columns, comma-separated (RFC 4180).
    Csv,
}

/// A listing's columns.
pub(crate) struct Rows {
    pub(crate) columns: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// What an output is about: what has to be said if it cannot be written.
#[derive(Clone, Copy, Debug)]
pub(crate) enum About<'a> {
    /// Nothing was changed.
    Look,
    /// This was done.
    Change(&'a str),
    /// This was done, and the output shows something that cannot be shown again.
    Secret {
        /// What was done.
        done: &'a str,
        /// What to do if the secret is lost.
        next: &'a str,
    },
}

/// Prints `value`: as it is for programs, as `rows` for people.
pub(crate) fn print(
    about: About<'_>,
    format: Format,
    value: &impl Serialize,
    rows: Rows,
) -> Result<(), Failure> {
    let text = match format {
        Format::Table => table_text(&rows),
        Format::Json => {
            let text = serde_json::to_string_pretty(value);
            text.map_err(|error| about.unwritten(&error))? + "\n"
        }
        Format::Yaml => {
            let text = serde_yaml_ng::to_string(value);
            text.map_err(|error| about.unwritten(&error))?
        }
        Format::Csv => csv(&rows),
    };
    show(about, &text)
}

/// Writes `text` to standard output as it is.
pub(crate) fn show(about: About<'_>, text: &str) -> Result<(), Failure> {
    outcome(
        about,
        standard::write_all(standard::output(), text.as_bytes()),
    )
}

/// What a write's outcome means for the command.
pub(crate) fn outcome(about: About<'_>, written: io::Result<()>) -> Result<(), Failure> {
    match (written, about) {
        (Ok(()), _) => Ok(()),
        (Err(error), About::Look | About::Change(_))
            if error.kind() == io::ErrorKind::BrokenPipe =>
        {
            Ok(())
        }
        (Err(error), _) => Err(about.unwritten(&error)),
    }
}

impl About<'_> {
    fn unwritten(self, error: &dyn std::fmt::Display) -> Failure {
        Failure::Failed(match self {
            Self::Look => format!("the output cannot be written: {error}. Nothing was changed"),
            Self::Change(done) => format!("{done}, but that cannot be written: {error}"),
            Self::Secret { done, next } => {
                format!("{done}; the secret could not be shown and is lost: {error}.\n{next}")
            }
        })
    }
}

/// Rows from which on a table is laid out here, if nothing in it has to be wrapped.
const LONG: usize = 200;

/// The columns as a table that fits the terminal, as text.
pub(crate) fn table_text(rows: &Rows) -> String {
    let table = table(&Rows {
        columns: rows.columns.clone(),
        rows: Vec::new(),
    });
    let long = rows.rows.len() >= LONG;
    let aligned = long.then(|| aligned(rows, table.width().map(usize::from)));
    match aligned.flatten() {
        Some(text) => text,
        None => format!("{}\n", self::table(rows)),
    }
}

/// The same text without wrapping, in a tenth of the time; `None` if a line would not fit or the
/// width of a text is not its number of bytes.
fn aligned(rows: &Rows, width_max: Option<usize>) -> Option<String> {
    let titles = titles(&rows.columns).collect();
    let lines = || std::iter::once(&titles).chain(&rows.rows);
    let mut widths = vec![0; rows.columns.len()];
    for line in lines() {
        for (width, text) in widths.iter_mut().zip(line) {
            if !text.bytes().all(|byte| (b' '..=b'~').contains(&byte)) {
                return None;
            }
            *width = text.len().max(*width);
        }
    }
    let width: usize = widths.iter().map(|width| width + 2).sum();
    if width_max.is_some_and(|most| width > most) {
        return None;
    }
    let mut text = String::with_capacity((width + 1) * (rows.rows.len() + 1));
    for line in lines() {
        for (width, cell) in widths.iter().zip(line) {
            text.push(' ');
            text += cell;
            text.extend(std::iter::repeat_n(' ', width - cell.len() + 1));
        }
        text.push('\n');
    }
    Some(text)
}

fn titles(columns: &[&'static str]) -> impl Iterator<Item = String> {
    let titles = columns.iter();
    titles.map(|column| column.to_uppercase().replace('_', " "))
}

/// The columns as a table that fits the terminal.
pub(crate) fn table(rows: &Rows) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    table.set_header(titles(&rows.columns));
    for row in &rows.rows {
        table.add_row(row);
    }
    table
}

fn csv(rows: &Rows) -> String {
    let header = rows.columns.iter().map(|column| (*column).to_owned());
    let mut text = csv_line(header);
    for row in &rows.rows {
        text += &csv_line(row.iter().cloned());
    }
    text
}

fn csv_line(fields: impl Iterator<Item = String>) -> String {
    let quoted: Vec<String> = fields
        .map(|field| {
            if field.contains([',', '"', '\r', '\n']) {
                format!("\"{}\"", field.replace('"', "\"\""))
            } else {
                field
            }
        })
        .collect();
    quoted.join(",") + "\r\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_that_nobody_reads_fails_only_if_it_holds_a_secret() {
        let closed = || Err(io::ErrorKind::BrokenPipe.into());
        let full = || Err(io::ErrorKind::StorageFull.into());
        let secret = About::Secret {
            done: "volume db was made",
            next: "Make another one",
        };
        for (about, closed_says, full_says) in [
            (About::Look, None, "Nothing was changed"),
            (
                About::Change("node 3 is evicted"),
                None,
                "node 3 is evicted, but",
            ),
            (secret, Some("is lost"), "volume db was made; the secret"),
        ] {
            let said = |written| outcome(about, written).err().map(|error| error.to_string());
            let heard = said(closed());
            assert_eq!(heard.is_some(), closed_says.is_some());
            assert!(
                heard
                    .unwrap_or_default()
                    .contains(closed_says.unwrap_or_default())
            );
            let heard = said(full()).unwrap();
            assert!(heard.contains(full_says), "{heard}");
        }
    }

    #[test]
    fn a_table_of_ten_thousand_rows_is_laid_out_in_a_moment() {
        let row = |number: u64| {
            let name = format!("volume-{number:05}");
            let target = format!("iqn.2026-11.io.holdfast:{name}");
            let texts = ["open", "1.0 TiB", "3 of 3", "node 4"].map(ToOwned::to_owned);
            let mut row = vec![name];
            row.extend(texts);
            row.extend([target, String::new()]);
            row
        };
        let rows = Rows {
            columns: vec![
                "name",
                "state",
                "size",
                "copies",
                "owner",
                "target",
                "explanation",
            ],
            rows: (0..10_000).map(row).collect(),
        };
        let begun = std::time::Instant::now();
        let text = aligned(&rows, None).expect("nothing has to be wrapped");
        let took = begun.elapsed();
        assert_eq!(text.lines().count(), 10_001);
        assert!(took.as_millis() < 500, "{took:?}");
        let few = Rows {
            columns: rows.columns.clone(),
            rows: rows.rows[..LONG].to_vec(),
        };
        assert_eq!(aligned(&few, None).unwrap(), format!("{}\n", table(&few)));
        assert_eq!(aligned(&few, Some(40)), None, "a line would not fit");
    }

    #[test]
    fn texts_that_are_wider_or_narrower_than_their_bytes_are_left_to_the_library() {
        let rows = |text: &str| Rows {
            columns: vec!["explanation"],
            rows: vec![vec![text.into()]],
        };
        assert_eq!(aligned(&rows("zwei\nZeilen"), None), None);
        assert_eq!(aligned(&rows("Lübeck"), None), None);
    }

    #[test]
    fn csv_quotes_what_rfc_4180_says() {
        let rows = Rows {
            columns: vec!["id", "explanation"],
            rows: vec![vec!["1".into(), "gone, said \"bye\"".into()]],
        };
        assert_eq!(
            csv(&rows),
            "id,explanation\r\n1,\"gone, said \"\"bye\"\"\"\r\n"
        );
    }
}
