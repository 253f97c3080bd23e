//! Text in columns.

/// A table: a heading and rows, columns as wide as their widest cell.
#[derive(Clone, Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
    right: Vec<bool>,
}

impl Table {
    /// A table with these headings. One that begins with `>` is of numbers, which stand to the right.
    #[must_use]
    pub(super) fn new(headings: &[&str]) -> Self {
        Self {
            rows: vec![headings.iter().map(|h| h.trim_start_matches('>').to_owned()).collect()],
            right: headings.iter().map(|h| h.starts_with('>')).collect(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub(super) fn row<I>(&mut self, cells: I)
    where
        I: IntoIterator,
        I::Item: Into<String>,
    {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// Whether there is nothing but the heading.
    #[must_use]
    pub(super) fn is_empty(&self) -> bool {
        self.rows.len() < 2
    }

    /// The text, a line a row, each ended by a newline; `indent` spaces before each.
    #[must_use]
    pub(super) fn render(&self, indent: usize) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..columns)
            .map(|c| self.rows.iter().filter_map(|row| row.get(c)).map(|cell| cell.chars().count()).max().unwrap_or(0))
            .collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(indent);
            for (c, width) in widths.iter().enumerate() {
                let cell = row.get(c).map_or("", String::as_str);
                let fill = " ".repeat(width - cell.chars().count());
                let right = self.right.get(c).copied().unwrap_or(false);
                if c > 0 {
                    line.push_str("  ");
                }
                let (before, after) = if right { (&*fill, "") } else { ("", &*fill) };
                line.push_str(before);
                line.push_str(cell);
                line.push_str(after);
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["NAME", ">HITS", "WHAT"]);
        assert!(table.is_empty());
        table.row(["é", "10", "x"]);
        table.row(["longer", "7"]);
        assert_eq!(table.render(1), " NAME    HITS  WHAT\n é         10  x\n longer     7\n");
    }
}
