//! Listings in the form that was asked for.

use clap::ValueEnum;
use comfy_table::presets::NOTHING;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::failure::Failure;

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

/// Prints `value`: as it is for programs, as `rows` for people.
pub(crate) fn print(format: Format, value: &impl Serialize, rows: Rows) -> Result<(), Failure> {
    match format {
        Format::Table => println!("{}", table(&rows)),
        Format::Json => println!(
            "{}",
            serde_json::to_string_pretty(value).map_err(Failure::of)?
        ),
        Format::Yaml => print!("{}", serde_yaml_ng::to_string(value).map_err(Failure::of)?),
        Format::Csv => print!("{}", csv(&rows)),
    }
    Ok(())
}

/// The columns as a table that fits the terminal.
pub(crate) fn table(rows: &Rows) -> Table {
    let mut table = Table::new();
    table
        .load_style(NOTHING)
        .set_content_arrangement(ContentArrangement::Dynamic);
    let titles = rows
        .columns
        .iter()
        .map(|column| column.to_uppercase().replace('_', " "));
    table.set_header(titles);
    for row in &rows.rows {
        table.add_row(row);
    }
    table
}

fn csv(rows: &Rows) -> String {
    let header = rows.columns.iter().map(|column| (*column).to_owned());
    let mut text = line(header);
    for row in &rows.rows {
        text += &line(row.iter().cloned());
    }
    text
}

fn line(fields: impl Iterator<Item = String>) -> String {
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
