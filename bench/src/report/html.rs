//! The page that a person opens: one file, nothing from elsewhere.

use super::machine::Machine;
use super::section::Section;

/// Text that is safe between tags and in quoted attributes.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '"' => escaped += "&quot;",
            '\'' => escaped += "&#39;",
            c => escaped.push(c),
        }
    }
    escaped
}

const STYLE: &str = "\
body { font: 16px/1.5 system-ui, 'DejaVu Sans', sans-serif; color: #222; background: #fff; max-width: 940px; margin: 2rem auto; padding: 0 1rem; }
h1 { line-height: 1.2; } h2 { margin-top: 3rem; border-bottom: 1px solid #ddd; } h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
.question { font-size: 1.15rem; font-style: italic; }
.warning { background: #fff3cd; border: 1px solid #e0c36a; padding: .6rem 1rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .88rem; }
th, td { border-bottom: 1px solid #e2e2e2; padding: .25rem .7rem; text-align: left; vertical-align: top; }
th { background: #f5f5f5; } .n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
figure { margin: 1.2rem 0; } figure svg { max-width: 100%; height: auto; border: 1px solid #eee; }
figcaption { font-size: .88rem; color: #555; }
pre { overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: .8rem; }
";

/// The whole page.
pub(crate) fn page(machine: &Machine, sections: &[Section]) -> String {
    let title = escaped(&machine.title());
    let mut html = format!(
        "<!doctype html>\n<html lang=en>\n<head>\n<meta charset=utf-8>\n\
         <meta name=viewport content=\"width=device-width, initial-scale=1\">\n<title>{title}</title>\n\
         <style>\n{STYLE}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    );
    if let Some(warning) = machine.warning() {
        html += &format!("<p class=warning>{}</p>\n", escaped(warning));
    }
    html += "<nav><ul>\n";
    for section in sections {
        html += &format!(
            "<li><a href=\"#{}\">{}</a></li>\n",
            section.name,
            escaped(section.title)
        );
    }
    html +=
        "<li><a href=\"#machine\">The machine, the settings, the baselines</a></li>\n</ul></nav>\n";
    html.extend(sections.iter().map(Section::html));
    html += "<section id=machine>\n<h2>The machine, the settings, the baselines</h2>\n";
    html += &machine.settings().html();
    if let Some(baselines) = machine.baselines() {
        html += "<h3>What device and loopback do without a server, before and after the experiments</h3>\n";
        html += &baselines.html();
    }
    html += "<p>The raw results are in <code>raw/</code>, one JSON object for each run; <code>orlop-bench report</code> on this \
             directory makes this page from them.</p>\n</section>\n</body>\n</html>\n";
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_in_a_text_is_taken_for_a_tag() {
        assert_eq!(
            escaped("<a href='x'>\"&"),
            "&lt;a href=&#39;x&#39;&gt;&quot;&amp;"
        );
    }
}
