//! `load --shard-aware` on a server of two shards: no key takes a hop, while half of them do without it.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use orlop::client::tokio::connect;

const BENCH: &str = env!("CARGO_BIN_EXE_orlop-bench");

/// A running `orlopd` of two shards; killed when dropped.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    /// Nothing where the server was not built beside the load generator.
    fn start(dir: &Path) -> Option<Server> {
        let program = Path::new(BENCH).with_file_name("orlopd");
        if !program.exists() {
            assert!(
                std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                "no {} although CI=true",
                program.display()
            );
            eprintln!("*** SKIPPED: cargo test --workspace builds the server that this test needs");
            return None;
        }
        let mut process = Command::new(program)
            .args(["--shards", "2", "--listen", "127.0.0.1:0"])
            .args(["--segment-size", "1MiB", "--max-value-size", "64KiB"])
            .args(["--cache", "8MiB", "--data"])
            .arg(dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(process.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let address = line
            .strip_prefix("ready: ")
            .and_then(|rest| rest.split(' ').next());
        let address = address
            .unwrap_or_else(|| panic!("orlopd said {line:?}"))
            .trim()
            .to_owned();
        Some(Server { process, address })
    }

    /// Keys that had to go on to another shard so far.
    fn forwarded(&self) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let client = connect(&self.address.parse().unwrap()).await.unwrap();
            client.stat().await.unwrap().forwarded
        })
    }

    fn load(&self, more: &[&str]) -> serde_json::Value {
        let output = Command::new(BENCH)
            .args([
                "load",
                "--json",
                "--verify",
                "--keys",
                "300",
                "--clients",
                "3",
            ])
            .args([
                "--warm-up",
                "0",
                "--duration",
                "0.3",
                "--server",
                &self.address,
            ])
            .args(more)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{stderr}");
        serde_json::from_slice(&output.stdout).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

#[test]
fn a_shard_aware_load_makes_no_hop() {
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let Some(server) = Server::start(dir.path()) else {
        return;
    };
    for batch in ["1", "16"] {
        let before = server.forwarded();
        let result = server.load(&["--shard-aware", "--preload", "--batch", batch]);
        assert_eq!(result["shardAware"], true);
        assert!(result["callsPerSecond"].as_f64().unwrap() > 0.0, "{result}");
        assert_eq!(server.forwarded(), before, "batch {batch}");
        let result = server.load(&["--batch", batch]);
        assert_eq!(result["shardAware"], false);
        assert!(server.forwarded() > before, "batch {batch}");
    }
}
