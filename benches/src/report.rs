//! What was found, for people and for machines.

use std::fmt::{self, Write as _};

use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::statistics::Spread;

/// The findings of one run.
#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub(crate) environment: Environment,
    pub(crate) tables: Vec<Table>,
}

/// Where it was found.
#[derive(Debug, Serialize)]
pub(crate) struct Environment {
    pub(crate) envoy: String,
    pub(crate) processor: String,
    pub(crate) processors: usize,
    pub(crate) kernel: String,
    /// At the start, over a minute: other work on the machine, which widens every spread.
    pub(crate) load_average: String,
    pub(crate) module_bytes: u64,
    pub(crate) is_quick: bool,
    pub(crate) seconds: f64,
}

/// The findings on one subject. As JSON, each row is an object by columns.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    /// What was done, and what the figures are.
    pub(crate) about: &'static str,
    pub(crate) columns: &'static [&'static str],
    pub(crate) rows: Vec<Vec<Cell>>,
}

/// One figure or name.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Cell {
    Text(String),
    Count(u64),
    Number(f64),
    Spread(Spread),
    None,
}

impl Serialize for Table {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let row = |row: &Vec<Cell>| -> Map<String, Value> {
            let cells = self.columns.iter().zip(row);
            cells
                .map(|(column, cell)| ((*column).to_owned(), serde_json::json!(cell)))
                .collect()
        };
        let rows: Vec<_> = self.rows.iter().map(row).collect();
        let table = serde_json::json!({ "name": self.name, "about": self.about, "rows": rows });
        table.serialize(serializer)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let here = &self.environment;
        writeln!(
            f,
            "Envoy {}, module of {} bytes; {} x {}, Linux {}, load average {} at the start; took {:.0} s{}",
            here.envoy,
            grouped(here.module_bytes),
            here.processors,
            here.processor,
            here.kernel,
            here.load_average,
            here.seconds,
            if here.is_quick {
                "\nA quick run: too few rounds for its times to be cited."
            } else {
                ""
            }
        )?;
        self.tables
            .iter()
            .try_for_each(|table| write!(f, "\n{table}"))
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}\n", self.name, self.about)?;
        let rows: Vec<Vec<String>> = self
            .rows
            .iter()
            .map(|row| row.iter().map(Cell::to_string).collect())
            .collect();
        let widths: Vec<usize> = self
            .columns
            .iter()
            .enumerate()
            .map(|(place, column)| {
                let cells = rows.iter().filter_map(|row| row.get(place));
                cells
                    .map(|cell| cell.chars().count())
                    .chain([column.chars().count()])
                    .max()
                    .unwrap_or_default()
            })
            .collect();
        let headings = self.columns.iter().map(|column| (*column).to_owned());
        writeln!(f, "{}", line(&widths, &headings.collect::<Vec<_>>(), &[]))?;
        for (row, cells) in rows.iter().zip(&self.rows) {
            writeln!(f, "{}", line(&widths, row, cells))?;
        }
        Ok(())
    }
}

/// Texts to the left, figures to the right.
fn line(widths: &[usize], texts: &[String], cells: &[Cell]) -> String {
    let mut line = String::new();
    for (place, (text, &width)) in texts.iter().zip(widths).enumerate() {
        let is_text = matches!(cells.get(place), None | Some(Cell::Text(_)));
        let written = if is_text {
            write!(line, "  {text:<width$}")
        } else {
            write!(line, "  {text:>width$}")
        };
        // Writing to a `String` does not fail.
        written.unwrap_or_default();
    }
    line.trim_end().to_owned()
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Count(count) => f.write_str(&grouped(*count)),
            Self::Number(number) => write!(f, "{number:.2}"),
            Self::Spread(spread) => spread.fmt(f),
            Self::None => f.write_str("-"),
        }
    }
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<u64> for Cell {
    fn from(count: u64) -> Self {
        Self::Count(count)
    }
}

impl From<usize> for Cell {
    fn from(count: usize) -> Self {
        Self::Count(count as u64)
    }
}

impl From<f64> for Cell {
    fn from(number: f64) -> Self {
        Self::Number(number)
    }
}

impl From<Spread> for Cell {
    fn from(spread: Spread) -> Self {
        Self::Spread(spread)
    }
}

/// 12,345
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let mut grouped = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table {
        Table {
            name: "sample",
            about: "two rows",
            columns: &["path", "instructions", "ratio"],
            rows: vec![
                vec!["inbound".into(), 1_970_u64.into(), Cell::None],
                vec![
                    "outbound".into(),
                    12_u64.into(),
                    Spread::of(&[1.0, 2.0, 3.0]).into(),
                ],
            ],
        }
    }

    #[test]
    fn text_output_has_aligned_columns() {
        let expected = "sample: two rows\n\n  \
            path      instructions  ratio\n  \
            inbound          1,970                    -\n  \
            outbound            12  2.00 (1.50 to 2.50)\n";
        assert_eq!(table().to_string(), expected);
    }

    #[test]
    fn json_output_has_rows_by_column() {
        let json = serde_json::to_value(table()).unwrap();
        assert_eq!(json["rows"][0]["instructions"], 1970);
        assert!(json["rows"][0]["ratio"].is_null());
        assert_eq!(json["rows"][1]["ratio"]["median"], 2.0);
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        let counts = [0, 999, 1_000, 1_234_567].map(grouped);
        assert_eq!(counts, ["0", "999", "1,000", "1,234,567"]);
    }
}
