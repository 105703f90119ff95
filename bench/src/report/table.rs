//! A table, as Markdown and as HTML.

use super::html::escaped;

/// Cells are plain text. The first columns are names and stand to the left, the others numbers and to the right.
#[derive(Debug)]
pub(crate) struct Table {
    /// How many columns hold names.
    names: usize,
    header: Vec<String>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(names: usize, header: &[&str]) -> Table {
        Table {
            names,
            header: header.iter().map(|cell| (*cell).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// A row; what it lacks at its end stays empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        let mut row: Vec<String> = cells.into_iter().collect();
        assert!(row.len() <= self.header.len(), "a cell without a column");
        row.resize(self.header.len(), String::new());
        self.rows.push(row);
    }

    pub(crate) fn markdown(&self) -> String {
        let line = |cells: &[String]| {
            let cells: Vec<String> = cells.iter().map(|cell| cell.replace('|', "\\|")).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let mut text = line(&self.header);
        text += "|";
        for column in 0..self.header.len() {
            text += if column < self.names { "---|" } else { "---:|" };
        }
        text += "\n";
        text.extend(self.rows.iter().map(|row| line(row)));
        text
    }

    pub(crate) fn html(&self) -> String {
        let line = |cells: &[String], tag: &str| {
            let cell = |(column, cell): (usize, &String)| {
                let class = if column < self.names { "" } else { " class=n" };
                format!("<{tag}{class}>{}</{tag}>", escaped(cell))
            };
            let cells: String = cells.iter().enumerate().map(cell).collect();
            format!("<tr>{cells}</tr>\n")
        };
        let rows: String = self.rows.iter().map(|row| line(row, "td")).collect();
        format!(
            "<div class=wide><table>\n<thead>{}</thead>\n<tbody>\n{rows}</tbody>\n</table></div>\n",
            line(&self.header, "th")
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markdown_and_html_show_what_is_in_the_cells() {
        let mut table = Table::new(1, &["what", "how much"]);
        table.row(["a|b <c>".to_owned(), "1".to_owned()]);
        table.row(["not measured".to_owned()]);
        assert_eq!(
            table.markdown(),
            "| what | how much |\n|---|---:|\n| a\\|b <c> | 1 |\n| not measured |  |\n"
        );
        let html = table.html();
        assert!(
            html.contains("<td>a|b &lt;c&gt;</td><td class=n>1</td>"),
            "{html}"
        );
    }
}
