//! What the commands do: each makes its calls on the library's client and writes what came of them.

use std::ffi::OsStr;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use orlop::client::tokio::connect;
use orlop::client::{Client, ClientError, Condition, Entry, Outcome, PrefixQuery};
use orlop::limits;

use crate::arguments::{Connection, ServerCommand, Set};
use crate::backup;
use crate::show::{self, Style};
use crate::stat;

/// How a command ended that was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// As asked.
    Done,
    /// The key is absent or the condition did not hold.
    No,
}

impl Answer {
    pub(crate) fn exit_code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Done => 0,
            Self::No => 1,
        })
    }
}

/// Why a command was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{0}")]
    Input(String),
    #[error("cannot write the output: {0}")]
    Output(io::Error),
    #[error("cannot start the runtime: {0}")]
    Runtime(io::Error),
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("no answer from {address} within {seconds} s (--timeout)", seconds = .waited.as_secs_f64())]
    Timeout { address: String, waited: Duration },
}

impl Failure {
    pub(crate) fn output(error: io::Error) -> Self {
        Self::Output(error)
    }

    pub(crate) fn runtime(error: io::Error) -> Self {
        Self::Runtime(error)
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code())
    }

    pub(crate) fn code(&self) -> u8 {
        match self {
            Self::Input(_) | Self::Output(_) | Self::Runtime(_) => 2,
            Self::Client(ClientError::Connect { .. } | ClientError::Disconnected(_))
            | Self::Timeout { .. } => 4,
            Self::Client(_) => 3,
        }
    }
}

/// Runs one command against the server.
pub(crate) async fn run(
    connection: &Connection,
    command: ServerCommand,
    style: Style,
    output: &mut dyn Write,
) -> Result<Answer, Failure> {
    // A value is read before the connection is made: standard input may take its time.
    let value = match &command {
        ServerCommand::Set(set) => value_of(set)?,
        _ => Vec::new(),
    };
    let client = within(connection, connect(&connection.server)).await?;
    let session = Session {
        client,
        connection,
        style,
        output,
    };
    match command {
        ServerCommand::Ping => session.ping().await,
        ServerCommand::Set(set) => session.set(&set.key.0, &value, set.condition()).await,
        ServerCommand::Get { key } => session.get(&key.0).await,
        ServerCommand::Delete { key, if_version } => session.delete(&key.0, if_version).await,
        ServerCommand::Prefix {
            prefix,
            keys_only,
            limit,
        } => session.prefix(&prefix.0, keys_only, limit).await,
        ServerCommand::Stat { json } => session.stat(json).await,
        ServerCommand::Backup(asked) => {
            let Session { client, output, .. } = session;
            backup::run(&client, connection, &asked, style, output).await
        }
    }
}

/// One step that must be done in time.
async fn within<T>(
    connection: &Connection,
    step: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, Failure> {
    let waited = connection.timeout;
    match tokio::time::timeout(waited, step).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(Failure::Timeout {
            address: connection.server.to_string(),
            waited,
        }),
    }
}

fn value_of(set: &Set) -> Result<Vec<u8>, Failure> {
    match (&set.value, &set.file) {
        (Some(value), _) => Ok(value.clone().into_vec()),
        (None, Some(path)) if path.as_os_str() == OsStr::new("-") => {
            read_value(io::stdin().lock(), "standard input")
        }
        (None, Some(path)) => {
            let file = std::fs::File::open(path).map_err(|error| unreadable(path, &error))?;
            read_value(file, &path.display().to_string())
        }
        (None, None) => Err(Failure::Input(
            "neither VALUE nor --file is given".to_string(),
        )),
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    Failure::Input(format!("cannot read {}: {error}", path.display()))
}

/// Reads a value, and no more than the largest value that any server takes.
fn read_value(source: impl Read, name: &str) -> Result<Vec<u8>, Failure> {
    let mut value = Vec::new();
    let mut bounded = source.take(limits::VALUE_LEN_MAX as u64 + 1);
    bounded
        .read_to_end(&mut value)
        .map_err(|error| unreadable(Path::new(name), &error))?;
    if value.len() > limits::VALUE_LEN_MAX {
        let reason = format!(
            "{name} has more than {} bytes, the limit of a value",
            limits::VALUE_LEN_MAX
        );
        return Err(Failure::Input(reason));
    }
    Ok(value)
}

struct Session<'a> {
    client: Client,
    connection: &'a Connection,
    style: Style,
    output: &'a mut dyn Write,
}

impl Session<'_> {
    async fn ping(self) -> Result<Answer, Failure> {
        // The first call also opens the store; the second is the round trip that is shown.
        within(self.connection, self.client.info()).await?;
        let begun = Instant::now();
        let info = within(self.connection, self.client.info()).await?;
        let microseconds = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
        let (version, shards) = (&info.server_version, info.placement.shard_count);
        let written = if self.style.human {
            let (server, took) = (&self.connection.server, show::duration(microseconds));
            let plural = if shards == 1 { "" } else { "s" };
            writeln!(
                self.output,
                "{server} answers in {took}: orlop {version}, {shards} shard{plural}"
            )
        } else {
            writeln!(
                self.output,
                "server_version\t{version}\nshard_count\t{shards}\nround_trip_us\t{microseconds}"
            )
        };
        written.map_err(Failure::output)?;
        Ok(Answer::Done)
    }

    async fn set(self, key: &[u8], value: &[u8], condition: Condition) -> Result<Answer, Failure> {
        let outcome = within(self.connection, self.client.set_if(key, value, condition)).await?;
        let done = |version, existed| {
            if existed {
                format!("replaced, version {version}")
            } else {
                format!("new, version {version}")
            }
        };
        self.show_outcome(outcome, done)
    }

    async fn delete(self, key: &[u8], if_version: Option<u64>) -> Result<Answer, Failure> {
        let condition = if_version.map_or(Condition::None, Condition::IfVersion);
        let outcome = within(self.connection, self.client.delete_if(key, condition)).await?;
        if let Outcome::Written { existed: false, .. } = outcome {
            eprintln!("orlop: the key is absent");
            return Ok(Answer::No);
        }
        self.show_outcome(outcome, |version, _| format!("deleted, version {version}"))
    }

    fn show_outcome(
        self,
        outcome: Outcome,
        done: impl FnOnce(u64, bool) -> String,
    ) -> Result<Answer, Failure> {
        let (version, existed) = match outcome {
            Outcome::Written { version, existed } => (version, existed),
            Outcome::Refused { current: None } => {
                eprintln!("orlop: refused: the key is absent");
                return Ok(Answer::No);
            }
            Outcome::Refused {
                current: Some(version),
            } => {
                eprintln!("orlop: refused: the key has version {version}");
                return Ok(Answer::No);
            }
        };
        let line = if self.style.human {
            done(version, existed)
        } else {
            format!("version\t{version}")
        };
        writeln!(self.output, "{line}").map_err(Failure::output)?;
        Ok(Answer::Done)
    }

    async fn get(self, key: &[u8]) -> Result<Answer, Failure> {
        let Some(found) = within(self.connection, self.client.get(key)).await? else {
            eprintln!("orlop: the key is absent");
            return Ok(Answer::No);
        };
        self.output
            .write_all(&found.value)
            .map_err(Failure::output)?;
        if self.style.human && !found.value.ends_with(b"\n") {
            // Or the shell's prompt would follow on the same line.
            self.output.write_all(b"\n").map_err(Failure::output)?;
        }
        Ok(Answer::Done)
    }

    /// Page by page, so that the memory stays small however much there is.
    async fn prefix(
        self,
        prefix: &[u8],
        keys_only: bool,
        limit: Option<u64>,
    ) -> Result<Answer, Failure> {
        let mut left = limit.unwrap_or(u64::MAX);
        let mut after = Vec::new();
        while left > 0 {
            let query = PrefixQuery {
                after: &after,
                keys_only,
                ..PrefixQuery::new(prefix)
            };
            let max_entries = query
                .max_entries
                .min(u32::try_from(left).unwrap_or(u32::MAX));
            let query = PrefixQuery {
                max_entries,
                ..query
            };
            let mut page = within(self.connection, self.client.get_prefix(&query)).await?;
            for entry in &page.entries {
                show_entry(entry, keys_only, self.style, self.output).map_err(Failure::output)?;
            }
            self.output.flush().map_err(Failure::output)?;
            left = left.saturating_sub(page.entries.len() as u64);
            match page.entries.pop() {
                Some(last) if page.more => after = last.key,
                _ => break,
            }
        }
        Ok(Answer::Done)
    }

    async fn stat(self, json: bool) -> Result<Answer, Failure> {
        let stat = within(self.connection, self.client.stat()).await?;
        stat::show(&stat, json, self.style, self.output).map_err(Failure::output)?;
        Ok(Answer::Done)
    }
}

fn show_entry(
    entry: &Entry,
    keys_only: bool,
    style: Style,
    output: &mut dyn Write,
) -> io::Result<()> {
    let Entry {
        key,
        value,
        version,
    } = entry;
    let key = show::one_line(key);
    match (keys_only, style.human) {
        (true, _) => writeln!(output, "{key}"),
        (false, false) => writeln!(output, "{key}\t{version}\t{}", show::one_line(value)),
        (false, true) => {
            let size = show::size(value.len() as u64);
            writeln!(
                output,
                "{key}  (version {version}, {size})  {}",
                show::beginning(value)
            )
        }
    }
}
