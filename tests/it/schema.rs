//! `schema/orlop.cgr`, which the build compiles, is made from the present `schema/orlop.capnp`.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::harness::skip;

fn schema(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("schema")
        .join(name)
}

#[test]
fn the_compiled_schema_was_made_from_the_present_text() {
    let output = Command::new("sha256sum")
        .stdin(std::fs::File::open(schema("orlop.capnp")).unwrap())
        .output()
        .unwrap();
    let now = String::from_utf8(output.stdout).unwrap();
    let noted = std::fs::read_to_string(schema("orlop.capnp.sha256")).unwrap();
    assert_eq!(
        now.split_whitespace().next(),
        Some(noted.trim()),
        "schema/orlop.capnp was changed after schema/orlop.cgr was made: run scripts/gen-schema.sh"
    );
}

/// Versions of the tool write different bytes for the same schema; the one of Debian 12 is the canonical one.
#[test]
fn the_schema_tool_reproduces_the_compiled_schema() {
    const CANONICAL: &str = "Cap'n Proto version 0.9.2";
    let version = match Command::new("capnp").arg("--version").output() {
        Ok(output) => String::from_utf8(output.stdout).unwrap(),
        Err(error) => return skip(&format!("no capnp tool: {error}")),
    };
    if version.trim() != CANONICAL {
        return skip(&format!("{} is not {CANONICAL}", version.trim()));
    }
    let mut command = Command::new("capnp");
    command
        .args(["compile", "-o-", "orlop.capnp"])
        .current_dir(schema(""))
        .stdin(Stdio::null());
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let checked_in = std::fs::read(schema("orlop.cgr")).unwrap();
    assert!(
        output.stdout == checked_in,
        "schema/orlop.cgr is stale: run scripts/gen-schema.sh"
    );
}
