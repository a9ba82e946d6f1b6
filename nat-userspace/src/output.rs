//! Results on stdout, and nothing else there.

use std::io::{self, Write};

use clap::ValueEnum;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Indented JSON and a newline.
///
/// # Errors
/// `out` cannot be written to.
pub fn json(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer_pretty(&mut *out, value)?;
    writeln!(out)
}

/// JSON on one line, for a sequence of values.
///
/// # Errors
/// `out` cannot be written to.
pub fn json_line(out: &mut impl Write, value: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, value)?;
    writeln!(out)?;
    out.flush()
}

/// Columns without frames; those whose every cell is a number are aligned to the right.
///
/// # Errors
/// `out` cannot be written to.
pub fn table<R>(out: &mut impl Write, header: &[&str], rows: R) -> io::Result<()>
where
    R: IntoIterator<Item = Vec<String>>,
{
    let rows: Vec<Vec<String>> = rows.into_iter().collect();
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_content_arrangement(ContentArrangement::Disabled)
        .set_header(header.iter().map(|title| title.to_uppercase()));
    table.add_rows(rows.iter().cloned());
    for (index, column) in table.column_iter_mut().enumerate() {
        // Two blanks between columns, none at the line's start.
        column.set_padding((0, 2));
        let numeric = |row: &Vec<String>| {
            row.get(index).is_some_and(|cell| {
                !cell.is_empty() && cell.bytes().all(|byte| byte.is_ascii_digit())
            })
        };
        if !rows.is_empty() && rows.iter().all(numeric) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

/// "1d 2h", "3h 4m", "5m 6s", "7s": two units tell an operator enough.
#[must_use]
pub fn span(seconds: u64) -> String {
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds}s"),
        (0, 0, _) => format!("{minutes}m {}s", seconds % 60),
        (0, ..) => format!("{hours}h {minutes}m"),
        _ => format!("{days}d {hours}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_one_line_a_row_and_numbers_end_below_each_other() {
        let mut out = Vec::new();
        let row = |name: &str, value: &str| vec![name.to_owned(), value.to_owned()];
        table(&mut out, &["name", "value"], [row("a", "5"), row("bc", "12345")]).expect("written");
        let text = String::from_utf8(out).expect("text");
        assert_eq!(text, "NAME  VALUE\na         5\nbc    12345\n");
    }

    #[test]
    fn a_span_has_its_two_largest_units() {
        assert_eq!(span(7), "7s");
        assert_eq!(span(306), "5m 6s");
        assert_eq!(span(3 * 3600 + 240), "3h 4m");
        assert_eq!(span(86_400 + 7200), "1d 2h");
    }
}
