//! Medians, ratios, and a table that is readable as text and as Markdown.

/// A row of numbers: the measured values of each VMM.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) what: String,
    /// Digits after the point.
    pub(crate) digits: usize,
    /// One list of values per column.
    pub(crate) values: Vec<Vec<f64>>,
}

/// The middle value, or the mean of the two middle ones; 0 of nothing.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match sorted.len() {
        0 => 0.0,
        len if len % 2 == 1 => sorted[len / 2],
        len => f64::midpoint(sorted[len / 2 - 1], sorted[len / 2]),
    }
}

impl Row {
    /// Its cells: name, median (least) per column, and how many times the first column's median the second is.
    pub(crate) fn cells(&self) -> Vec<String> {
        let mut cells = vec![self.what.clone()];
        cells.extend(self.values.iter().map(|values| self.cell(values)));
        if let [first, second] = self.values.as_slice() {
            cells.push(format!("{:.1}x", median(second) / median(first)));
        }
        cells
    }

    fn cell(&self, values: &[f64]) -> String {
        let digits = self.digits;
        let least = values.iter().copied().fold(f64::INFINITY, f64::min);
        let (middle, least) = (format!("{:.digits$}", median(values)), format!("{least:.digits$}"));
        if middle == least { middle } else { format!("{middle} ({least})") }
    }
}

/// Prints a table with its columns aligned.
pub(crate) fn print(header: &[String], rows: &[Vec<String>]) {
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column)).chain(header.get(column));
        cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..header.len()).map(width).collect();
    println!("{}", line(header, &widths));
    let rules: Vec<String> = widths.iter().enumerate().map(|(column, &width)| rule(column, width)).collect();
    println!("|{}|", rules.join("|"));
    for row in rows {
        println!("{}", line(row, &widths));
    }
}

fn rule(column: usize, width: usize) -> String {
    let dashes = "-".repeat(width + 1);
    if column == 0 { format!("{dashes}-") } else { format!("{dashes}:") }
}

/// The first column is words, the others are numbers.
fn line(cells: &[String], widths: &[usize]) -> String {
    let padded = cells.iter().zip(widths).enumerate().map(|(column, (cell, &width))| match column {
        0 => format!("{cell:<width$}"),
        _ => format!("{cell:>width$}"),
    });
    format!("| {} |", padded.collect::<Vec<_>>().join(" | "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 3.0, 2.0]), 2.5);
        assert_eq!(median(&[]), 0.0);
    }

    #[test]
    fn a_row_shows_medians_the_least_and_the_ratio() {
        let row = Row { what: "ms".into(), digits: 1, values: vec![vec![2.0, 1.0, 3.0], vec![5.0]] };
        assert_eq!(row.cells(), ["ms", "2.0 (1.0)", "5.0", "2.5x"]);
    }
}
