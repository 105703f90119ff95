//! The command line of `orlop`: its commands and options, their help, and how keys are written.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use orlop::client::Condition;
use orlop::client::tokio::Address;

/// How a key that is not printable is written, and what begins it.
pub(crate) const HEX_PREFIX: &str = "hex:";

const AFTER_HELP: &str = "\
Keys and prefixes are taken as they are. One that is not printable is written in hexadecimal, as hex:00ff; so is \
one that really starts with \"hex:\": the key \"hex:1\" is hex:6865783a31.

On a terminal the output is made for people; otherwise it is plain lines with tabs between the fields, and sizes \
and times are plain numbers.

Exit codes:
  0  done
  1  the key is absent, or the condition did not hold
  2  wrong usage, or a local file that cannot be read or written
  3  the server answered an error
  4  no connection, or it broke: then a write may have been done or not
  130  a backup was interrupted: nothing of it is left";

/// Talks to an orlop server, the durable key-value store.
#[derive(Debug, Parser)]
#[command(name = "orlop", version, after_help = AFTER_HELP)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) connection: Connection,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where the server is and how long to wait for it.
#[derive(Args, Debug)]
pub(crate) struct Connection {
    /// The server, as HOST:PORT or unix:PATH
    #[arg(
        long,
        global = true,
        env = "ORLOP_SERVER",
        display_order = 100,
        value_name = "ADDR",
        default_value = "127.0.0.1:6000"
    )]
    pub(crate) server: Address,
    /// How long to wait for the connection, and for each answer
    #[arg(
        long,
        global = true,
        display_order = 101,
        value_name = "SECONDS",
        default_value = "10",
        value_parser = seconds
    )]
    pub(crate) timeout: Duration,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    #[command(flatten)]
    Server(ServerCommand),
    /// Print the shell's completions of this command to standard output
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Print the manual page to standard output, as roff
    Man,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ServerCommand {
    /// Ask the server who it is
    Ping,
    /// Give a key a value; done when the value is durable
    Set(Set),
    /// Print the value of a key, byte for byte
    Get {
        /// The key
        #[arg(value_parser = KeyParser)]
        key: Key,
    },
    /// Remove a key; done when the removal is durable
    Delete {
        /// The key
        #[arg(value_parser = KeyParser)]
        key: Key,
        /// Only if the key has exactly this version
        #[arg(long, value_name = "VERSION")]
        if_version: Option<u64>,
    },
    /// List the keys that start with a prefix, in order, with their versions and values
    Prefix {
        /// The prefix; '' lists everything
        #[arg(value_parser = PrefixParser)]
        prefix: Key,
        /// Leave the values out
        #[arg(long)]
        keys_only: bool,
        /// Stop after so many keys
        #[arg(long, value_name = "N")]
        limit: Option<u64>,
    },
    /// Show the counters and sizes of the server
    Stat {
        /// As JSON, with every field
        #[arg(long)]
        json: bool,
    },
    /// Copy the store while it serves
    ///
    /// The copy holds every write that was acknowledged before. It appears whole or not at all. A directory opens as a
    /// store (orlopd --data DIR); a tar stream is turned into one by "orlopd restore". "orlopd verify" reads a copy
    /// through; this command does not.
    Backup(Backup),
}

#[derive(Args, Debug)]
pub(crate) struct Backup {
    /// A directory that is missing or empty, a file that ends in .tar and is missing, or '-': a tar stream to standard
    /// output
    pub(crate) target: PathBuf,
    /// Show the result as JSON
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Args, Debug)]
pub(crate) struct Set {
    /// The key
    #[arg(value_parser = KeyParser)]
    pub(crate) key: Key,
    /// The value
    #[arg(
        required_unless_present = "file",
        conflicts_with = "file",
        allow_negative_numbers = true
    )]
    pub(crate) value: Option<OsString>,
    /// Take the value from a file; '-' is standard input
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    condition: ConditionArguments,
}

#[derive(Args, Debug)]
#[group(multiple = false)]
struct ConditionArguments {
    /// Only if the key is absent
    #[arg(long)]
    if_absent: bool,
    /// Only if the key is present
    #[arg(long)]
    if_present: bool,
    /// Only if the key has exactly this version
    #[arg(long, value_name = "VERSION")]
    if_version: Option<u64>,
}

impl Set {
    pub(crate) fn condition(&self) -> Condition {
        match &self.condition {
            ConditionArguments {
                if_absent: true, ..
            } => Condition::IfAbsent,
            ConditionArguments {
                if_present: true, ..
            } => Condition::IfPresent,
            ConditionArguments {
                if_version: Some(version),
                ..
            } => Condition::IfVersion(*version),
            _ => Condition::None,
        }
    }
}

fn seconds(text: &str) -> Result<Duration, String> {
    let refused = || format!("{text:?} is no time: give seconds, as 10 or 0.5");
    let seconds: f64 = text.parse().map_err(|_| refused())?;
    Duration::try_from_secs_f64(seconds)
        .ok()
        .filter(|duration| !duration.is_zero())
        .ok_or_else(refused)
}

/// A key or prefix as bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Key(pub(crate) Vec<u8>);

impl Key {
    /// Reads what people write.
    pub(crate) fn parse(text: &OsStr) -> Result<Self, String> {
        let Some(digits) = text.as_bytes().strip_prefix(HEX_PREFIX.as_bytes()) else {
            return Ok(Self(text.as_bytes().to_vec()));
        };
        let refused = || {
            format!(
                "{text:?} is no key: hex: takes pairs of hexadecimal digits, as hex:00ff; a key that really starts \
                 with hex: is written as hex:6865783a and so on"
            )
        };
        let (pairs, rest) = digits.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(refused());
        }
        let byte = |pair: &[u8; 2]| Some(hex_digit(pair[0])? << 4 | hex_digit(pair[1])?);
        pairs
            .iter()
            .map(byte)
            .collect::<Option<_>>()
            .map(Self)
            .ok_or_else(refused)
    }
}

fn hex_digit(digit: u8) -> Option<u8> {
    char::from(digit)
        .to_digit(16)
        .and_then(|value| u8::try_from(value).ok())
}

/// For keys, which are never empty.
#[derive(Clone)]
struct KeyParser;

/// For prefixes, which may be.
#[derive(Clone)]
struct PrefixParser;

impl clap::builder::TypedValueParser for PrefixParser {
    type Value = Key;

    fn parse_ref(
        &self,
        command: &clap::Command,
        _: Option<&clap::Arg>,
        text: &OsStr,
    ) -> Result<Key, clap::Error> {
        Key::parse(text).map_err(|reason| refuse(command, &reason))
    }
}

impl clap::builder::TypedValueParser for KeyParser {
    type Value = Key;

    fn parse_ref(
        &self,
        command: &clap::Command,
        argument: Option<&clap::Arg>,
        text: &OsStr,
    ) -> Result<Key, clap::Error> {
        let key = PrefixParser.parse_ref(command, argument, text)?;
        if key.0.is_empty() {
            return Err(refuse(
                command,
                "the key is empty: a key has 1 to 65535 bytes",
            ));
        }
        Ok(key)
    }
}

fn refuse(command: &clap::Command, reason: &str) -> clap::Error {
    clap::Error::raw(
        clap::error::ErrorKind::ValueValidation,
        format!("{reason}\n"),
    )
    .with_cmd(command)
}
