//! What the README shows works as it is written there: its commands, its Python and its Rust are run.

use std::path::Path;
use std::process::Command;

use crate::clients::{python, run_program};
use crate::harness::{Flags, Server, run, skip, with_server};

/// The first block of a language behind a heading.
fn block(heading: &str, language: &str) -> String {
    let readme =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap();
    let (_, section) = readme
        .split_once(&format!("\n## {heading}\n"))
        .expect("the heading is there");
    let (_, start) = section
        .split_once(&format!("```{language}\n"))
        .expect("the block is there");
    let (block, _) = start.split_once("```").expect("the block ends");
    block.to_owned()
}

/// Everything between starting and stopping the server, which the test does itself.
#[test]
fn the_commands_of_the_readme_do_what_they_say() {
    with_server(async |server| {
        let script: String = block("Start", "sh")
            .lines()
            .filter(|line| line.contains("orlop "))
            .map(|line| format!("{line}\n"))
            .collect();
        assert!(script.lines().count() >= 7, "{script}");
        let binaries = Path::new(env!("CARGO_BIN_EXE_orlop")).parent().unwrap();
        let path = format!("{}:{}", binaries.display(), std::env::var("PATH").unwrap());
        let mut shell = Command::new("sh");
        shell
            .args(["-ec", &script])
            .env("PATH", path)
            .env("ORLOP_SERVER", server.address().to_string());
        let output = shell.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let stdout = String::from_utf8(output.stdout).unwrap();
        assert!(stdout.contains("hello"), "{stdout}");
        let listed: Vec<&str> = stdout
            .lines()
            .filter(|line| ["hex:00ff", "greeting", "note"].contains(line))
            .collect();
        assert_eq!(listed, ["hex:00ff", "greeting", "note"], "{stdout}");
    });
}

#[test]
fn the_python_of_the_readme_runs() {
    let python = match python() {
        Ok(python) => python,
        Err(reason) => return skip(&reason),
    };
    run(async |scratch| {
        let server = Server::start(&scratch.data(), &Flags::small()).await;
        let program = block("Clients", "python");
        assert!(program.contains("port=6000"), "{program}");
        let program = program.replace("port=6000", &format!("port={}", server.address().port()));
        let file = scratch.path("example.py");
        std::fs::write(&file, program).unwrap();
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let output = run_program(&python, &[file.as_os_str()], root).await;
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.stdout, b"b'hello'\n");
        server.stop().await;
    });
}

#[test]
fn the_rust_of_the_readme_runs() {
    let this = include_str!("readme.rs");
    let (_, compiled) = this
        .split_once("// As in README.md.\n")
        .expect("the mark is there");
    let unindented: String = compiled
        .lines()
        .map(|line| format!("{}\n", line.strip_prefix("    ").unwrap_or(line)))
        .collect();
    let shown = block("Clients", "rust");
    let shown = shown.replacen("async fn", "pub(crate) async fn", 1);
    assert!(
        unindented.starts_with(&shown),
        "README.md shows another program than this file runs:\n{shown}"
    );
    with_server(async |server| {
        let address = server.address().to_string().parse().unwrap();
        example::example(&address).await.unwrap();
    });
}

mod example {
    // As in README.md.
    use orlop::client::tokio::{Address, ShardedClient, connect};
    use orlop::client::{Condition, Outcome, PrefixQuery};

    pub(crate) async fn example(server: &Address) -> Result<(), Box<dyn std::error::Error>> {
        let client = connect(server).await?;
        client.set(b"user/1", b"Ada").await?;
        if let Some(found) = client.get(b"user/1").await? {
            // Only if nobody else has written it since.
            let condition = Condition::IfVersion(found.version);
            let outcome = client.set_if(b"user/1", b"Ada Lovelace", condition).await?;
            assert!(matches!(outcome, Outcome::Written { existed: true, .. }));
        }
        let page = client.get_prefix(&PrefixQuery::new(b"user/")).await?;
        assert_eq!(page.entries[0].value, b"Ada Lovelace");

        // The same operations, with a connection to each shard of the server.
        let client = ShardedClient::new(server.clone());
        let found = client.get_many(&["user/1", "user/2"]).await?;
        assert!(found[0].is_some() && found[1].is_none());
        Ok(())
    }
}
