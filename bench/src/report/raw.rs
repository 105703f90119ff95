//! The raw results of a directory: JSON as `scripts/experiments.sh` wrote it, and what can be wrong with it.
//!
//! `about.json` is one object: what was measured, where and how. Each `raw/NAME.jsonl` has one object on each line: one
//! run. Guarantees: a missing or wrong field is told with its file, its line and its name; nothing is guessed. Does not:
//! know what the fields mean. Read by the sections.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

/// Why there is no report.
#[derive(Debug)]
pub(crate) enum ReportError {
    /// A file that has to be there cannot be read.
    Unreadable { path: PathBuf, source: io::Error },
    /// What stands in it is not what it should be; the sentence says what.
    Wrong { place: String, what: String },
    /// The report cannot be written.
    Unwritable { path: PathBuf, source: io::Error },
    /// A plot cannot be drawn: a fault of this program.
    Undrawable { plot: String, reason: String },
}

impl ReportError {
    /// 2 when what was given is wrong, 3 when this machine refused something.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            ReportError::Unreadable { .. } | ReportError::Wrong { .. } => 2,
            ReportError::Unwritable { .. } | ReportError::Undrawable { .. } => 3,
        }
    }
}

impl fmt::Display for ReportError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ReportError::Unreadable { path, source } => {
                write!(out, "cannot read {}: {source}", path.display())
            }
            ReportError::Wrong { place, what } => write!(out, "{place}: {what}"),
            ReportError::Unwritable { path, source } => {
                write!(out, "cannot write {}: {source}", path.display())
            }
            ReportError::Undrawable { plot, reason } => {
                write!(out, "cannot draw {plot}: {reason}")
            }
        }
    }
}

/// One JSON object, and where it stands.
#[derive(Debug)]
pub(crate) struct Object {
    place: String,
    value: Value,
}

impl Object {
    fn parse(place: String, text: &str) -> Result<Object, ReportError> {
        let wrong = |what: String| ReportError::Wrong {
            place: place.clone(),
            what,
        };
        match serde_json::from_str::<Value>(text) {
            Ok(value) if value.is_object() => Ok(Object { place, value }),
            Ok(_) => Err(wrong("is JSON, but no object".to_owned())),
            Err(error) if text.trim().is_empty() => Err(wrong(format!("is empty ({error})"))),
            Err(error) => Err(wrong(format!("is no JSON: {error}"))),
        }
    }

    /// The error for this object.
    pub(crate) fn wrong(&self, what: impl Into<String>) -> ReportError {
        ReportError::Wrong {
            place: self.place.clone(),
            what: what.into(),
        }
    }

    pub(crate) fn has(&self, pointer: &str) -> bool {
        self.value
            .pointer(pointer)
            .is_some_and(|value| !value.is_null())
    }

    /// A number that is there and not negative. `pointer` is a JSON pointer: `/run/read/p50Us`.
    pub(crate) fn number(&self, pointer: &str) -> Result<f64, ReportError> {
        let found = self.value.pointer(pointer).and_then(Value::as_f64);
        found
            .filter(|number| *number >= 0.0)
            .ok_or_else(|| self.missing(pointer, "a number that is not negative"))
    }

    /// A whole number.
    pub(crate) fn whole(&self, pointer: &str) -> Result<u64, ReportError> {
        let found = self.value.pointer(pointer).and_then(Value::as_u64);
        found.ok_or_else(|| self.missing(pointer, "a whole number"))
    }

    pub(crate) fn text(&self, pointer: &str) -> Result<&str, ReportError> {
        let found = self.value.pointer(pointer).and_then(Value::as_str);
        found.ok_or_else(|| self.missing(pointer, "a text"))
    }

    pub(crate) fn flag(&self, pointer: &str) -> Result<bool, ReportError> {
        let found = self.value.pointer(pointer).and_then(Value::as_bool);
        found.ok_or_else(|| self.missing(pointer, "true or false"))
    }

    /// A list of texts.
    pub(crate) fn texts(&self, pointer: &str) -> Result<Vec<&str>, ReportError> {
        let list = self.value.pointer(pointer).and_then(Value::as_array);
        let texts = list.and_then(|list| list.iter().map(Value::as_str).collect());
        texts.ok_or_else(|| self.missing(pointer, "a list of texts"))
    }

    fn missing(&self, pointer: &str, wanted: &str) -> ReportError {
        let name = pointer.trim_start_matches('/').replace('/', ".");
        match self.value.pointer(pointer) {
            None => self.wrong(format!("{name} is missing, {wanted} is needed")),
            Some(found) => self.wrong(format!("{name} is {found}, {wanted} is needed")),
        }
    }
}

fn text_of(path: &Path) -> Result<String, ReportError> {
    std::fs::read_to_string(path).map_err(|source| ReportError::Unreadable {
        path: path.to_owned(),
        source,
    })
}

/// `about.json` of a result directory.
pub(crate) fn about(directory: &Path) -> Result<Object, ReportError> {
    let path = directory.join("about.json");
    Object::parse(path.display().to_string(), &text_of(&path)?)
}

/// The runs in `raw/NAME.jsonl`: at least one.
pub(crate) fn runs(directory: &Path, name: &str) -> Result<Vec<Object>, ReportError> {
    let path = directory.join("raw").join(format!("{name}.jsonl"));
    let text = text_of(&path)?;
    let shown = path.display();
    if text.is_empty() {
        return Err(ReportError::Wrong {
            place: shown.to_string(),
            what: "has no runs".to_owned(),
        });
    }
    // The last line of a file that was cut off has no end, even if it happens to be JSON.
    if !text.ends_with('\n') {
        return Err(ReportError::Wrong {
            place: shown.to_string(),
            what: "ends in the middle of a line: it was cut off".to_owned(),
        });
    }
    (1..)
        .zip(text.lines())
        .map(|(number, line)| Object::parse(format!("{shown}, line {number}"), line))
        .collect()
}

/// The runs in `raw/NAME.jsonl`, none if there is no such file.
pub(crate) fn runs_if_any(directory: &Path, name: &str) -> Result<Vec<Object>, ReportError> {
    match runs(directory, name) {
        Err(ReportError::Unreadable { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(Vec::new())
        }
        runs => runs,
    }
}

#[cfg(test)]
impl Object {
    pub(crate) fn of(value: Value) -> Object {
        Object {
            place: "a test".to_owned(),
            value,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_field_that_is_not_there_or_wrong_is_named_with_its_place() {
        let object = Object::of(json!({"run": {"read": {"p50Us": -1}}, "name": 3}));
        let told = |error: ReportError| error.to_string();
        assert_eq!(
            told(object.number("/run/read/p99Us").unwrap_err()),
            "a test: run.read.p99Us is missing, a number that is not negative is needed"
        );
        assert_eq!(
            told(object.number("/run/read/p50Us").unwrap_err()),
            "a test: run.read.p50Us is -1, a number that is not negative is needed"
        );
        assert_eq!(
            told(object.text("/name").unwrap_err()),
            "a test: name is 3, a text is needed"
        );
    }
}
