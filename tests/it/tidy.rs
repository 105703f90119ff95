//! The structure of the project as a test: who may use whom, what every file must say, which names and habits are out.
//!
//! What a compiler or a lint can check is in `Cargo.toml` and `scripts/clippy.toml`; this is the rest. A rule that turns
//! out wrong is changed here, in the open, with its reason.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which layers a layer of `src/` may use, besides itself. Arrows point downwards only.
const MAY_USE: &[(&str, &[&str])] = &[
    ("limits", &[]),
    ("ack_log", &[]),
    ("partial", &[]),
    ("placement", &[]),
    ("proto", &["limits"]),
    ("wire", &["limits", "proto"]),
    ("storage", &["limits"]),
    ("shard", &["limits", "placement", "storage"]),
    (
        "server",
        &[
            "limits",
            "ack_log",
            "partial",
            "placement",
            "proto",
            "wire",
            "storage",
            "shard",
        ],
    ),
    ("client", &["limits", "placement", "proto", "wire"]),
];

/// Words of other people's crates, and the only places of `src/` that may say them outside comments.
const ONLY_IN: &[(&str, &[&str])] = &[
    ("glommio", &["server/", "shard/", "storage/disk/dma.rs"]),
    ("capnp", &["proto/", "wire/", "server/", "client/"]),
    ("capnp_rpc", &["proto/", "wire/", "server/", "client/"]),
    ("tokio", &["client/", "bin/orlop/"]),
    ("xxhash_rust", &["placement.rs"]),
    ("crc32fast", &["storage/"]),
    ("tar", &["server/restore/source.rs", "bin/orlop/"]),
];

/// Names that say nothing collect everything.
const NAMES_OUT: &[&str] = &[
    "util", "utils", "helper", "helpers", "common", "misc", "stuff",
];

const LINES_MAX: usize = 600;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text_of(path: &str) -> String {
    std::fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Files below a folder of the project, as paths relative to the project.
fn files(folder: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        let entries = std::fs::read_dir(&folder)
            .unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path
                .file_name()
                .and_then(|name| name.to_str())
                .expect("names are UTF-8");
            if path.is_dir() {
                if !name.starts_with('.')
                    && !["target", "results", "__pycache__", "node_modules"].contains(&name)
                {
                    folders.push(path);
                }
            } else {
                found.push(
                    path.strip_prefix(root())
                        .unwrap()
                        .to_str()
                        .unwrap()
                        .to_owned(),
                );
            }
        }
    }
    found.sort();
    found
}

fn rust_files(folders: &[&str]) -> Vec<String> {
    let all = folders.iter().flat_map(|folder| files(folder));
    all.filter(|path| path.ends_with(".rs")).collect()
}

/// The lines of a file that are code, with their numbers: comments, documentation and what is in quotes are cut off.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, String)> {
    (1..).zip(text.lines()).filter_map(|(number, line)| {
        let mut code = String::new();
        let mut quoted = false;
        let mut last = ' ';
        for c in line.chars() {
            match c {
                '"' if last != '\\' && last != '\'' => quoted = !quoted,
                '/' if !quoted && last == '/' => {
                    code.pop();
                    break;
                }
                _ if quoted => {}
                _ => code.push(c),
            }
            last = c;
        }
        (!code.trim().is_empty()).then_some((number, code))
    })
}

/// The words of a line of code.
fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .filter(|word| !word.is_empty())
}

/// The layers that a line of code names through `crate::`.
fn layers_named(code: &str) -> Vec<&str> {
    let mut named = Vec::new();
    for after in code.split("crate::").skip(1) {
        match after.strip_prefix('{') {
            Some(list) => named.extend(list.split(',').filter_map(|item| words(item).next())),
            None => named.extend(words(after).next()),
        }
    }
    named
}

#[track_caller]
fn expect_none(rule: &str, found: &[String]) {
    let mut text = String::new();
    for line in found {
        writeln!(text, "  {line}").unwrap();
    }
    assert!(found.is_empty(), "{rule}:\n{text}");
}

#[test]
fn dependencies_point_downwards() {
    let layers: BTreeSet<&str> = MAY_USE.iter().map(|(layer, _)| *layer).collect();
    let mut found = Vec::new();
    for path in rust_files(&["src"]) {
        let inside = path.strip_prefix("src/").unwrap();
        let layer = inside.split(['/', '.']).next().unwrap();
        if ["lib", "bin"].contains(&layer) {
            continue;
        }
        let Some((_, may_use)) = MAY_USE.iter().find(|(name, _)| *name == layer) else {
            found.push(format!(
                "{path}: the layer {layer} is not in the table of tests/it/tidy.rs"
            ));
            continue;
        };
        for (number, code) in code_lines(&text_of(&path)) {
            for named in layers_named(&code) {
                if layers.contains(named) && named != layer && !may_use.contains(&named) {
                    found.push(format!("{path}:{number}: {layer} must not use {named}"));
                }
            }
        }
    }
    expect_none("an arrow points back", &found);
}

#[test]
fn the_tools_use_only_what_they_are_for() {
    let mut found = Vec::new();
    for path in rust_files(&["src/bin"]) {
        if path.ends_with("/tests.rs") {
            continue;
        }
        let may_use: &[&str] = if path.starts_with("src/bin/orlopd") {
            &["server"]
        } else {
            &["client", "limits", "partial"]
        };
        for (number, code) in code_lines(&text_of(&path)) {
            for after in code.split("orlop::").skip(1) {
                let named = words(after).next().unwrap_or_default();
                if !may_use.contains(&named) {
                    found.push(format!("{path}:{number}: {named}; it may use {may_use:?}"));
                }
            }
        }
    }
    expect_none("a binary reaches too far", &found);
}

#[test]
fn foreign_crates_stay_where_they_belong() {
    let mut found = Vec::new();
    for path in rust_files(&["src"]) {
        let inside = path.strip_prefix("src/").unwrap();
        let text = text_of(&path);
        for (word, places) in ONLY_IN {
            if places.iter().any(|place| inside.starts_with(place)) {
                continue;
            }
            let lines =
                code_lines(&text).filter(|(_, code)| words(code).any(|found| found == *word));
            found.extend(
                lines.map(|(number, _)| format!("{path}:{number}: {word} belongs in {places:?}")),
            );
        }
    }
    expect_none("a crate outside its place", &found);
}

#[test]
fn every_file_says_what_it_is_for() {
    let mut found = Vec::new();
    for path in rust_files(&["src", "tests", "bench"])
        .into_iter()
        .chain(["build.rs".to_owned()])
    {
        let text = text_of(&path);
        let first = text.lines().next().unwrap_or_default();
        if !first.starts_with("//! ") && !first.starts_with("#![doc = include_str!") {
            found.push(path);
        }
    }
    expect_none("no //! at the head", &found);
}

#[test]
fn files_are_short_and_named_after_what_they_own() {
    let mut found = Vec::new();
    for path in files("src")
        .into_iter()
        .chain(files("tests"))
        .chain(files("bench"))
        .chain(files("scripts"))
    {
        let path_of = PathBuf::from(&path);
        let stem = path_of.file_stem().unwrap().to_str().unwrap();
        if NAMES_OUT.contains(&stem)
            || path_of
                .iter()
                .any(|part| NAMES_OUT.iter().any(|out| part == *out))
        {
            found.push(format!("{path}: the name says nothing"));
        }
        if !["rs", "py", "sh", "cpp", "mjs"]
            .iter()
            .any(|kind| path.ends_with(&format!(".{kind}")))
        {
            continue;
        }
        let text = text_of(&path);
        // A file's own unit tests at its end are not counted.
        let counted = text
            .split("\n#[cfg(test)]\nmod tests {")
            .next()
            .unwrap_or_default()
            .lines()
            .count();
        if counted > LINES_MAX {
            found.push(format!(
                "{path}: {counted} lines, at most {LINES_MAX}: cut it where it owns two things"
            ));
        }
    }
    expect_none("a file to cut or to rename", &found);
}

/// `matches!(..);` as a statement is an assertion that somebody forgot to make: it compiles and checks nothing.
#[test]
fn no_statement_is_a_bare_matches() {
    let mut found = Vec::new();
    for path in rust_files(&["src", "tests", "bench"]) {
        for (number, code) in code_lines(&text_of(&path)) {
            if code.trim_start().starts_with("matches!(") && code.trim_end().ends_with(';') {
                found.push(format!("{path}:{number}: {}", code.trim()));
            }
        }
    }
    expect_none("a comparison that nobody looks at", &found);
}

/// A test that sleeps is slow where the machine is fast and wrong where it is slow.
#[test]
fn no_test_sleeps() {
    let mut found = Vec::new();
    for path in rust_files(&["src", "tests", "bench"]) {
        let text = text_of(&path);
        let is_test_file =
            path.starts_with("tests/") || path.contains("/tests/") || path.ends_with("/tests.rs");
        let tests_from = if is_test_file {
            1
        } else {
            match text.lines().position(|line| line.trim() == "#[cfg(test)]") {
                Some(line) => line + 1,
                None => continue,
            }
        };
        for (number, code) in code_lines(&text) {
            let sleeps = code.contains("sleep(") && !code.contains("fn ");
            if number >= tests_from && sleeps {
                found.push(format!("{path}:{number}: {}", code.trim()));
            }
        }
    }
    expect_none(
        "a test that sleeps; wait for a line, a reply or an exit instead",
        &found,
    );
}

#[test]
fn every_file_of_the_library_is_in_the_code_map() {
    let map = text_of("src/ARCHITECTURE.md");
    let mut found = Vec::new();
    for path in rust_files(&["src"]) {
        let inside = path.strip_prefix("src/").unwrap();
        let is_test = inside.contains("/tests/") || inside.ends_with("tests.rs");
        if inside != "lib.rs" && !is_test && !map.contains(inside) {
            found.push(inside.to_owned());
        }
    }
    expect_none("not in the code map of src/ARCHITECTURE.md", &found);
    // And nothing in it that is gone.
    let named = map
        .split(|c: char| c.is_whitespace() || "`()|,:".contains(c))
        .filter(|word| word.ends_with(".rs"));
    let gone = named.filter(|name| {
        let bare = name.trim_start_matches("src/");
        !root().join("src").join(bare).exists() && !root().join(bare).exists()
    });
    expect_none(
        "in the code map and not in src/",
        &gone.map(str::to_owned).collect::<Vec<_>>(),
    );
    assert!(
        root().join("src/storage/FORMAT.md").exists(),
        "the bytes on disk have their page"
    );
}

#[test]
fn scripts_are_named_in_the_readme_and_can_be_started() {
    let readme = text_of("README.md");
    let index = format!("{readme}{}", text_of("bench/README.md"));
    let mut found = Vec::new();
    for path in files("scripts").into_iter().chain([".ci/run".to_owned()]) {
        let is_script = path.ends_with(".sh") || path == ".ci/run";
        let is_example = path.starts_with("scripts/examples/client.");
        if (path.ends_with(".sh") || is_example) && !index.contains(&path) {
            found.push(format!("{path} is in no README.md"));
        }
        let mode = std::os::unix::fs::PermissionsExt::mode(
            &std::fs::metadata(root().join(&path)).unwrap().permissions(),
        );
        if is_script && mode & 0o111 == 0 {
            found.push(format!("{path} is not executable"));
        }
        if is_script && !text_of(&path).contains("set -euo pipefail") {
            found.push(format!("{path} goes on after an error: set -euo pipefail"));
        }
    }
    for word in readme.split(|c: char| c.is_whitespace() || "`()[],;".contains(c)) {
        let is_path = ["scripts/", "src/", "tests/", "schema/", "bench/"]
            .iter()
            .any(|folder| word.starts_with(folder));
        if is_path && !root().join(word.trim_end_matches(['.', ':'])).exists() {
            found.push(format!("README.md names {word}, which is not there"));
        }
    }
    expect_none("README.md and scripts differ", &found);
}

/// The lines of README's shell blocks that start a program of the project: each program, subcommand and flag exists.
#[test]
fn commands_in_the_readme_exist() {
    let readme = text_of("README.md");
    let help_of = |binary: &str, subcommand: Option<&str>| {
        let output = Command::new(binary)
            .args(subcommand)
            .arg("--help")
            .output()
            .unwrap();
        (output.status.success()).then(|| String::from_utf8(output.stdout).unwrap())
    };
    let mut found = Vec::new();
    let mut checked = 0;
    let mut in_shell = false;
    for line in readme.lines() {
        if let Some(kind) = line.strip_prefix("```") {
            in_shell = kind == "sh";
            continue;
        }
        let line = line
            .split(" #")
            .next()
            .unwrap_or_default()
            .trim_start_matches("$ ");
        // Pipes and sequences are several commands.
        for command in line.split(['|', ';', '&']).filter(|_| in_shell) {
            let mut parts = command.split_whitespace().peekable();
            let program = parts.next().unwrap_or_default();
            let (binary, subcommand) = match program.rsplit('/').next().unwrap_or_default() {
                "orlopd" => (
                    env!("CARGO_BIN_EXE_orlopd"),
                    parts.next_if(|part| !part.starts_with('-')),
                ),
                "orlop" => (
                    env!("CARGO_BIN_EXE_orlop"),
                    parts.find(|part| !part.starts_with('-')),
                ),
                _ => continue,
            };
            let Some(help) = help_of(binary, subcommand) else {
                found.push(format!("{command:?}: no such subcommand"));
                continue;
            };
            for flag in parts.filter(|part| part.starts_with("--")) {
                let flag = flag.split('=').next().unwrap_or_default();
                if !help.contains(flag) {
                    found.push(format!("{command:?}: {flag} is not in --help"));
                }
            }
            checked += 1;
        }
    }
    expect_none("README.md shows commands that do not work", &found);
    assert!(
        checked >= 8,
        "only {checked} commands recognised in README.md"
    );
}

/// The guarantees of the README are what the tests show: each row names tests, and they exist.
#[test]
fn tests_named_in_the_readme_exist() {
    let readme = text_of("README.md");
    let functions: BTreeSet<String> = rust_files(&["src", "tests"])
        .iter()
        .flat_map(|path| {
            let text = text_of(path);
            let names = text
                .lines()
                .filter_map(|line| line.trim_start().split_once("fn "))
                .filter(|(before, _)| before.is_empty() || before.starts_with("pub"));
            names
                .map(|(_, rest)| words(rest).next().unwrap_or_default().to_owned())
                .collect::<Vec<_>>()
        })
        .collect();
    let mut found = Vec::new();
    let mut rows = 0;
    for row in readme.lines().filter(|line| line.starts_with("| P")) {
        rows += 1;
        let names: Vec<&str> = row
            .split('`')
            .skip(1)
            .step_by(2)
            .filter(|name| name.contains('_') && !name.contains('/'))
            .collect();
        if names.is_empty() {
            found.push(format!("no test in: {row}"));
        }
        found.extend(
            names
                .iter()
                .filter(|name| !functions.contains(**name))
                .map(|name| format!("no test {name}")),
        );
    }
    expect_none("README.md promises without a test", &found);
    assert!(rows >= 7, "{rows} guarantees in README.md");
}
