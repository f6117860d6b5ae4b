//! The table: a row for each thing measured, with its bound.

use serde::Serialize;

/// What a value must be.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Bound {
    /// At most this much.
    AtMost(f64),
    /// Anything, as long as it could be measured.
    Measured,
    /// A figure for the documentation.
    None,
}

/// One thing that was measured.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Row {
    /// The point, and after it in which state: `3`, or `5:3` for point 3 with data.
    pub(crate) point: String,
    pub(crate) what: String,
    /// Absent if it could not be measured.
    pub(crate) value: Option<f64>,
    pub(crate) unit: &'static str,
    pub(crate) bound: Bound,
    /// What else there is to say, or why there is no value.
    pub(crate) note: String,
}

impl Row {
    /// A value that was not measured has met no bound.
    pub(crate) fn is_met(&self) -> bool {
        match (self.bound, self.value) {
            (Bound::None, _) => true,
            (Bound::AtMost(most), Some(value)) => value <= most,
            (Bound::Measured, Some(_)) => true,
            (Bound::AtMost(_) | Bound::Measured, None) => false,
        }
    }

    fn verdict(&self) -> &'static str {
        match (self.bound, self.is_met()) {
            (Bound::None, _) => "",
            (Bound::AtMost(_) | Bound::Measured, true) => "ok",
            (Bound::AtMost(_) | Bound::Measured, false) => "MISSED",
        }
    }
}

/// See the module's header.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Adds a row and shows it at once: a run takes many minutes.
    pub(crate) fn add(&mut self, row: Row) {
        println!("{}", line(&row));
        self.rows.push(row);
    }

    pub(crate) fn is_met(&self) -> bool {
        self.rows.iter().all(Row::is_met)
    }

    pub(crate) fn text(&self) -> String {
        let head = format!(
            "{:<6} {:<58} {:>12} {:>12}  {:<7}",
            "point", "what", "value", "bound", ""
        );
        let lines = self.rows.iter().map(line);
        let lines: Vec<String> = std::iter::once(head).chain(lines).collect();
        lines.join("\n")
    }

    pub(crate) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string_pretty(self)? + "\n")
    }
}

fn line(row: &Row) -> String {
    let value = row.value.map_or("-".into(), |value| shown(value, row.unit));
    let bound = match row.bound {
        Bound::AtMost(most) => format!("<= {}", shown(most, row.unit)),
        Bound::Measured | Bound::None => String::new(),
    };
    let text = format!(
        "{:<6} {:<58} {value:>12} {bound:>12}  {:<7}{}",
        row.point,
        row.what,
        row.verdict(),
        row.note
    );
    text.trim_end().to_owned()
}

fn shown(value: f64, unit: &str) -> String {
    let digits = match value.abs() {
        value if value >= 100.0 => 0,
        value if value >= 10.0 => 1,
        _ => 2,
    };
    format!("{value:.digits$} {unit}")
}
