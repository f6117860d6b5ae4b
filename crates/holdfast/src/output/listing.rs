//! Listings of any length, printed page by page as they come.
//!
//! What is printed in the end is the same as if all entries had come at once: one JSON array, one
//! YAML sequence, one header. Only a table waits for the last entry, because its columns have to
//! fit all of them.

use std::ops::ControlFlow;

use serde::Serialize;

use super::{About, Format, Rows, csv_line, table_text};
use crate::failure::Failure;
use crate::standard;

/// A listing that is being printed.
pub(crate) struct Listing {
    format: Format,
    columns: Vec<&'static str>,
    entries: usize,
    /// Rows of a table.
    rows: Vec<Vec<String>>,
}

/// Whether the reader wants more.
type Wanted = ControlFlow<()>;

impl Listing {
    pub(crate) fn new(format: Format, columns: Vec<&'static str>) -> Self {
        Self {
            format,
            columns,
            entries: 0,
            rows: Vec::new(),
        }
    }

    /// The next entries: each as it is for programs, and by `row` for people.
    pub(crate) fn page<T: Serialize>(
        &mut self,
        values: &[T],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<Wanted, Failure> {
        let text = self.next(values, row)?;
        write(&text)
    }

    /// The end of the listing. Answers how many entries there were.
    pub(crate) fn end(self) -> Result<usize, Failure> {
        let text = match (self.format, self.entries) {
            (Format::Table, _) => {
                let rows = Rows {
                    columns: self.columns,
                    rows: self.rows,
                };
                table_text(&rows)
            }
            (Format::Json | Format::Yaml, 0) => "[]\n".to_owned(),
            (Format::Json, _) => "\n]\n".to_owned(),
            (Format::Yaml, _) => String::new(),
            (Format::Csv, 0) => csv_header(&self.columns),
            (Format::Csv, _) => String::new(),
        };
        // Nothing follows that a reader could still want.
        let _ = write(&text)?;
        Ok(self.entries)
    }

    fn next<T: Serialize>(
        &mut self,
        values: &[T],
        row: impl Fn(&T) -> Vec<String>,
    ) -> Result<String, Failure> {
        if values.is_empty() {
            return Ok(String::new());
        }
        let mut text = String::new();
        match self.format {
            Format::Table => self.rows.extend(values.iter().map(row)),
            Format::Json => {
                for (number, value) in (self.entries..).zip(values) {
                    text += if number == 0 { "[\n  " } else { ",\n  " };
                    let value = serde_json::to_string_pretty(value);
                    let value = value.map_err(|error| About::Look.unwritten(&error))?;
                    // A line break inside a string is written as an escape.
                    text += &value.replace('\n', "\n  ");
                }
            }
            Format::Yaml => {
                let sequence = serde_yaml_ng::to_string(values);
                text = sequence.map_err(|error| About::Look.unwritten(&error))?;
            }
            Format::Csv => {
                if self.entries == 0 {
                    text = csv_header(&self.columns);
                }
                for value in values {
                    text += &csv_line(row(value).into_iter());
                }
            }
        }
        self.entries += values.len();
        Ok(text)
    }
}

fn csv_header(columns: &[&str]) -> String {
    csv_line(columns.iter().map(|column| (*column).to_owned()))
}

/// A reader that has gone has what it wanted.
fn write(text: &str) -> Result<Wanted, Failure> {
    match standard::write_all(standard::output(), text.as_bytes()) {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(About::Look.unwritten(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Serialize)]
    struct Entry {
        id: u64,
        text: String,
    }

    fn entries(ids: std::ops::Range<u64>) -> Vec<Entry> {
        let text = |id| format!("says {id},\n\"so\"");
        ids.map(|id| Entry { id, text: text(id) }).collect()
    }

    fn row(entry: &Entry) -> Vec<String> {
        vec![entry.id.to_string(), entry.text.clone()]
    }

    fn in_pages(format: Format, pages: &[std::ops::Range<u64>]) -> String {
        let mut listing = Listing::new(format, vec!["id", "text"]);
        let mut text = String::new();
        for page in pages {
            text += &listing.next(&entries(page.clone()), row).unwrap();
        }
        text + match (format, listing.entries) {
            (Format::Json, 1..) => "\n]\n",
            _ => "",
        }
    }

    #[test]
    fn pages_add_up_to_what_one_page_would_be() {
        for format in [Format::Json, Format::Yaml, Format::Csv] {
            let one = in_pages(format, std::slice::from_ref(&(0..5)));
            assert_eq!(in_pages(format, &[0..2, 2..2, 2..5]), one, "{format:?}");
        }
        let json = in_pages(Format::Json, &[0..2, 2..3]);
        let all = entries(0..3);
        assert_eq!(json, serde_json::to_string_pretty(&all).unwrap() + "\n");
        let yaml = in_pages(Format::Yaml, &[0..2, 2..3]);
        assert_eq!(yaml, serde_yaml_ng::to_string(&all).unwrap());
    }
}
