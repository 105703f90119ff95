//! One experiment in the report: a question, how it was asked, tables, plots, what they show and what they do not.

use super::html::escaped;
use super::table::Table;

/// A chart and the files that it becomes.
#[derive(Debug)]
pub(crate) struct Plot {
    /// Name of its files, without `.svg` and `.png`.
    pub(crate) name: &'static str,
    pub(crate) caption: &'static str,
    pub(crate) svg: String,
}

#[derive(Debug)]
pub(crate) struct Section {
    /// Name of the experiment and of its Markdown file.
    pub(crate) name: &'static str,
    pub(crate) title: &'static str,
    pub(crate) question: &'static str,
    /// What was run, in sentences.
    pub(crate) method: String,
    /// What the data say, each sentence computed from them.
    pub(crate) findings: Vec<String>,
    pub(crate) plots: Vec<Plot>,
    /// With a caption each.
    pub(crate) tables: Vec<(String, Table)>,
    /// What the experiment does not show.
    pub(crate) limits: Vec<&'static str>,
    pub(crate) commands: Vec<String>,
}

impl Section {
    pub(crate) fn markdown(&self) -> String {
        let mut text = format!(
            "# {}\n\n{}\n\n{}\n\n",
            self.title, self.question, self.method
        );
        for finding in &self.findings {
            text += &format!("- {finding}\n");
        }
        for plot in &self.plots {
            text += &format!("\n![{}]({}.png)\n", plot.caption, plot.name);
        }
        for (caption, table) in &self.tables {
            text += &format!("\n{caption}\n\n{}", table.markdown());
        }
        text += "\nWhat this does not show:\n\n";
        for limit in &self.limits {
            text += &format!("- {limit}\n");
        }
        if !self.commands.is_empty() {
            text += &format!("\n```sh\n{}\n```\n", self.commands.join("\n"));
        }
        text
    }

    pub(crate) fn html(&self) -> String {
        let list = |sentences: Vec<String>| {
            let items: String = sentences
                .iter()
                .map(|sentence| format!("<li>{}</li>\n", escaped(sentence)))
                .collect();
            format!("<ul>\n{items}</ul>\n")
        };
        let mut html = format!(
            "<section id={}>\n<h2>{}</h2>\n<p class=question>{}</p>\n<p>{}</p>\n",
            self.name,
            escaped(self.title),
            escaped(self.question),
            escaped(&self.method)
        );
        html += &list(self.findings.clone());
        for plot in &self.plots {
            html += &format!(
                "<figure>\n{}<figcaption>{} (<a href=\"{name}.svg\">SVG</a>, <a href=\"{name}.png\">PNG</a>)</figcaption>\n</figure>\n",
                plot.svg,
                escaped(plot.caption),
                name = plot.name
            );
        }
        for (caption, table) in &self.tables {
            html += &format!("<h3>{}</h3>\n{}", escaped(caption), table.html());
        }
        html += "<h3>What this does not show</h3>\n";
        html += &list(
            self.limits
                .iter()
                .map(|limit| (*limit).to_owned())
                .collect(),
        );
        if !self.commands.is_empty() {
            html += &format!(
                "<details><summary>Commands</summary><pre>{}</pre></details>\n",
                escaped(&self.commands.join("\n"))
            );
        }
        html + "</section>\n"
    }
}
