//! A real `redis-server` for one test, on a unix socket of its own; it ends with the test.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

pub(crate) struct Redis {
    child: Child,
    dir: PathBuf,
}

impl Redis {
    /// In memory only. Nothing, and loudly so, where it is not installed; with CI=true that is a failure.
    pub(crate) fn start(test: &str) -> Option<Redis> {
        // A socket's path is at most 107 bytes long: not below the target directory.
        let name = format!("orlop-bench-redis-{test}-{}", std::process::id());
        let dir = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&dir).expect("a directory");
        let spawned = Command::new("redis-server")
            .args(["--port", "0", "--save", "", "--appendonly", "no"])
            .arg("--unixsocket")
            .arg(dir.join("s"))
            .arg("--dir")
            .arg(&dir)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn();
        let mut child = match spawned {
            Ok(child) => child,
            Err(error) => {
                std::fs::remove_dir_all(&dir).expect("the directory goes");
                assert!(
                    std::env::var_os("CI").is_none_or(|ci| ci != "true"),
                    "{test}: SKIPPED although CI=true: redis-server: {error}"
                );
                eprintln!("*** SKIPPED {test}: redis-server: {error}");
                return None;
            }
        };
        let mut lines = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut said = String::new();
        while !said.contains("eady to accept connections") && !said.contains("now ready") {
            let read = lines.read_line(&mut said).expect("lines of text");
            assert_ne!(read, 0, "redis-server ended: {said}");
        }
        // What it says later must find a reader.
        std::thread::spawn(move || std::io::copy(&mut lines, &mut std::io::sink()));
        Some(Redis { child, dir })
    }

    pub(crate) fn address(&self) -> String {
        format!("unix:{}", self.dir.join("s").display())
    }

    /// Sends one command and gives the first bytes of its answer.
    pub(crate) fn ask(&self, words: &[&str]) -> String {
        let mut stream = UnixStream::connect(self.dir.join("s")).expect("the server runs");
        let line = words.join(" ") + "\r\n";
        stream.write_all(line.as_bytes()).expect("the server reads");
        let mut answer = [0; 4096];
        let read = stream.read(&mut answer).expect("the server answers");
        String::from_utf8_lossy(&answer[..read])
            .trim_end()
            .to_owned()
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.child.kill().expect("the server runs until now");
        self.child.wait().expect("it is our child");
        std::fs::remove_dir_all(&self.dir).expect("the directory goes");
    }
}
