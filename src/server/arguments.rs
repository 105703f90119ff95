//! The command line of `orlopd`: flags, their environment variables, and the help text.
//!
//! Owns the spelling; what the values mean together is checked in [`Config`](crate::server::config::Config).
//! Called by the binary. Guarantees: every flag has an `ORLOP_...` variable that `--help` names.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use crate::server::{cpus, exit, size};

/// CPU numbers of `--cpus`. A type of its own, because the parser reads a plain vector as a repeated flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuList(pub Vec<usize>);

/// How much is logged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Only what stops the server or a part of it.
    Error,
    /// Also what an operator should look at.
    Warn,
    /// Also starts, stops and recovery.
    #[default]
    Info,
    /// Also each connection.
    Debug,
    /// Everything.
    Trace,
}

/// How a log line is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// A durable key-value server: what it acknowledges survives power loss.
///
/// Keys are ordered, values are bytes, the protocol is Cap'n Proto RPC (schema/orlop.capnp). When it serves it prints
/// one line on standard output, "ready: ADDR:PORT" and the address of each shard; logs go to standard error.
#[derive(Debug, Parser)]
#[command(name = "orlopd", version, max_term_width = 100, after_long_help = exit::HELP, after_help = exit::HELP)]
#[command(args_conflicts_with_subcommands = true)]
pub struct Arguments {
    /// What to do instead of serving.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Settings of the server.
    #[command(flatten)]
    pub serve: ServeArguments,
}

/// Settings of the server as they were given.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeArguments {
    /// Directory of the data; made if it is missing. It needs a file system with O_DIRECT (ext4, xfs, btrfs).
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./orlop-data",
        env = "ORLOP_DATA",
        hide_env_values = true
    )]
    pub data: PathBuf,

    /// Address to listen on, like 127.0.0.1:6000; port 0 picks a free one. There is no authentication:
    /// whoever reaches the address can read and write everything.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:6000", value_parser = parse_listen)]
    #[arg(env = "ORLOP_LISTEN", hide_env_values = true)]
    pub listen: SocketAddr,

    /// Also listen on a unix socket at this path, for this user only.
    #[arg(long, value_name = "PATH", env = "ORLOP_UNIX", hide_env_values = true)]
    pub unix: Option<PathBuf>,

    /// Number of shards, one thread each [default: as many as --cpus lists, or as the process may use]. A data
    /// directory keeps the number that it was made with.
    #[arg(long, value_name = "N", env = "ORLOP_SHARDS", hide_env_values = true)]
    pub shards: Option<u64>,

    /// CPUs to pin the shards to, like 0-3,6, one per shard [default: all that the process may use].
    #[arg(long, value_name = "LIST", value_parser = parse_cpus, env = "ORLOP_CPUS", hide_env_values = true)]
    pub cpus: Option<CpuList>,

    /// Memory for values over all shards, like 512MiB [default: a quarter of the machine's memory]. Keys and the
    /// index come on top.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, env = "ORLOP_CACHE", hide_env_values = true)]
    pub cache: Option<u64>,

    /// Largest value that a client may write, at most 32MiB.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "16MiB")]
    #[arg(env = "ORLOP_MAX_VALUE_SIZE", hide_env_values = true)]
    pub max_value_size: u64,

    /// Size of one log file; each shard makes them ahead, so that a start takes room for two of them per shard. They are
    /// larger where a value of an earlier run needs it.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "64MiB")]
    #[arg(env = "ORLOP_SEGMENT_SIZE", hide_env_values = true)]
    pub segment_size: u64,

    /// What the server may read of its sealed log files in the background to find damage early, per second; 0: nothing.
    /// It reads slower if all of it is read once a day that way, but not below a 128th.
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "8MiB")]
    #[arg(env = "ORLOP_SCRUB_RATE", hide_env_values = true)]
    pub scrub_rate: u64,

    /// How long a shard looks for new work before its CPU may sleep, in microseconds, up to 1000000. 50 to 200 shorten
    /// what a lone client waits. For CPUs that are the server's own: it takes time from other programs on them.
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    #[arg(env = "ORLOP_IDLE_POLL", hide_env_values = true)]
    pub idle_poll: u32,

    /// Answer every call through the general RPC system. Slower, and to the client the same: for finding out whether a
    /// problem is in the fast path.
    #[arg(long, env = "ORLOP_NO_FAST_PATH", hide_env_values = true)]
    pub no_fast_path: bool,

    /// How much to log.
    #[arg(
        long,
        value_name = "LEVEL",
        default_value = "info",
        env = "ORLOP_LOG",
        hide_env_values = true
    )]
    pub log: LogLevel,

    /// How to write log lines.
    #[arg(
        long,
        value_name = "FORMAT",
        default_value = "text",
        env = "ORLOP_LOG_FORMAT",
        hide_env_values = true
    )]
    pub log_format: LogFormat,
}

/// A data directory that is not served.
#[derive(Clone, Debug, clap::Args)]
pub struct StoppedDirectory {
    /// Directory of the data.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./orlop-data",
        env = "ORLOP_DATA",
        hide_env_values = true
    )]
    pub data: PathBuf,
}

/// What is checked, and how the result is written.
#[derive(Clone, Debug, clap::Args)]
pub struct VerifyArguments {
    /// The directory.
    #[command(flatten)]
    pub directory: StoppedDirectory,

    /// Also check that the log keeps what the acknowledgement log of a client says, as `orlop-bench load --ack-log`
    /// writes it: each write is there with its version, or a later one of its key.
    #[arg(long, value_name = "FILE")]
    pub acks: Option<PathBuf>,

    /// Print one JSON object.
    #[arg(long)]
    pub json: bool,
}

/// What is shown.
#[derive(Clone, Debug, clap::Args)]
pub struct InspectArguments {
    /// The directory.
    #[command(flatten)]
    pub directory: StoppedDirectory,

    /// Name of one segment file [default: the manifest and all of them].
    #[arg(value_name = "SEGMENT")]
    pub segment: Option<String>,

    /// Also show each frame.
    #[arg(long)]
    pub frames: bool,

    /// Also show each record.
    #[arg(long)]
    pub records: bool,
}

/// What is restored and where to.
#[derive(Clone, Debug, clap::Args)]
pub struct RestoreArguments {
    /// What "orlop backup" has written: a tar stream in a file, '-' for one on standard input, or a directory.
    #[arg(value_name = "SOURCE")]
    pub source: PathBuf,

    /// Directory to make: missing or empty.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./orlop-data",
        env = "ORLOP_DATA",
        hide_env_values = true
    )]
    pub data: PathBuf,

    /// Do not read the result through. A damaged copy is then found when the server starts.
    #[arg(long)]
    pub no_verify: bool,
}

/// What `orlopd` can do instead of serving.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Check a data directory that is not served: reads everything, changes nothing, names every damaged place.
    #[command(after_long_help = exit::VERIFY_HELP, after_help = exit::VERIFY_HELP)]
    Verify(VerifyArguments),
    /// Show what the bytes of a data directory mean that is not served: its manifest and segment files, or the frames and
    /// records of one.
    #[command(after_long_help = exit::INSPECT_HELP, after_help = exit::INSPECT_HELP)]
    Inspect(InspectArguments),
    /// Make a data directory of a backup, whole or not at all, and verify it.
    #[command(after_long_help = exit::RESTORE_HELP, after_help = exit::RESTORE_HELP)]
    Restore(RestoreArguments),
    /// Print a completion script.
    #[command(hide = true)]
    Completions {
        /// The shell to complete in.
        shell: Shell,
    },
    /// Print the manual page.
    #[command(hide = true)]
    Man,
}

fn parse_cpus(text: &str) -> Result<CpuList, String> {
    cpus::parse(text).map(CpuList)
}

fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| {
        format!("\"{text}\" is not an IP address and a port: write it like 127.0.0.1:6000, [::1]:6000 or 0.0.0.0:6000")
    })
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;
    use crate::limits;

    fn parsed(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(["orlopd"].iter().chain(arguments))
    }

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn without_arguments_the_documented_defaults_hold() {
        let serve = parsed(&[]).unwrap().serve;
        assert_eq!(serve.data, PathBuf::from("./orlop-data"));
        assert_eq!(serve.listen, "127.0.0.1:6000".parse().unwrap());
        assert_eq!(serve.max_value_size, limits::VALUE_LEN_MAX_DEFAULT as u64);
        assert_eq!(serve.segment_size, 64 << 20);
        assert_eq!(serve.scrub_rate, limits::SCRUB_RATE_DEFAULT);
        assert_eq!(
            (serve.unix, serve.shards, serve.cpus, serve.cache),
            (None, None, None, None)
        );
        assert_eq!((serve.idle_poll, serve.no_fast_path), (0, false));
        assert_eq!(
            (serve.log, serve.log_format),
            (LogLevel::Info, LogFormat::Text)
        );
    }

    #[test]
    fn every_flag_is_read() {
        let serve = parsed(&[
            "--data=/d",
            "--listen=[::1]:7",
            "--unix=/s",
            "--shards=2",
            "--cpus=1,0",
            "--cache=1G",
            "--max-value-size=1M",
            "--segment-size=8M",
            "--scrub-rate=32M",
            "--idle-poll=100",
            "--no-fast-path",
            "--log=debug",
            "--log-format=json",
        ])
        .unwrap()
        .serve;
        assert_eq!(serve.data, PathBuf::from("/d"));
        assert_eq!(serve.listen, "[::1]:7".parse().unwrap());
        assert_eq!(serve.unix, Some(PathBuf::from("/s")));
        assert_eq!(
            (serve.shards, serve.cpus),
            (Some(2), Some(CpuList(vec![1, 0])))
        );
        assert_eq!(
            (serve.cache, serve.max_value_size, serve.segment_size),
            (Some(1 << 30), 1 << 20, 8 << 20)
        );
        assert_eq!(serve.scrub_rate, 32 << 20);
        assert_eq!((serve.idle_poll, serve.no_fast_path), (100, true));
        assert_eq!(
            (serve.log, serve.log_format),
            (LogLevel::Debug, LogFormat::Json)
        );
    }

    #[test]
    fn help_names_a_variable_for_every_flag_and_every_exit_code() {
        let mut command = Arguments::command();
        let help = command.render_long_help().to_string();
        for argument in command
            .get_arguments()
            .filter(|argument| !["help", "version"].contains(&argument.get_id().as_str()))
        {
            let flag = argument.get_long().expect("every argument is a flag");
            let variable = format!("ORLOP_{}", flag.to_uppercase().replace('-', "_"));
            assert_eq!(
                argument.get_env().and_then(|name| name.to_str()),
                Some(variable.as_str()),
                "--{flag}"
            );
            assert!(
                help.contains(&format!("[env: {variable}]")),
                "{variable} is not in:\n{help}"
            );
        }
        for code in [0, 2, 3, 4, 5, 130] {
            assert!(
                help.lines()
                    .any(|line| line.trim_start().starts_with(&format!("{code} "))),
                "{code}: {help}"
            );
        }
    }

    #[test]
    fn a_bad_value_is_named_with_its_flag() {
        for (arguments, named) in [
            (
                ["--listen", "localhost"],
                "\"localhost\" is not an IP address and a port",
            ),
            (["--cpus", "x"], "\"x\" is neither a CPU number nor a range"),
            (["--cache", "1.5G"], "\"1.5G\" is not a size"),
            (["--shards", "many"], "--shards"),
            (["--idle-poll", "1000001"], "0..=1000000"),
            (["--log", "loud"], "--log"),
            (["--unix", ""], "--unix"),
        ] {
            let error = parsed(&arguments).unwrap_err();
            assert_eq!(error.exit_code(), i32::from(exit::USAGE));
            let sentence = error.to_string();
            assert!(
                sentence.contains(arguments[0]) && sentence.contains(named),
                "{sentence}"
            );
        }
    }

    #[test]
    fn verify_takes_a_directory_and_a_form() {
        let Some(Command::Verify(asked)) = parsed(&["verify", "--data=/d", "--acks=/a", "--json"])
            .unwrap()
            .command
        else {
            panic!("another command")
        };
        assert_eq!(
            (asked.directory.data, asked.json),
            (PathBuf::from("/d"), true)
        );
        assert_eq!(asked.acks, Some(PathBuf::from("/a")));
    }

    #[test]
    fn inspect_takes_a_segment_and_how_much_of_it() {
        let words = ["inspect", "--data=/d", "s.log", "--records"];
        let Some(Command::Inspect(asked)) = parsed(&words).unwrap().command else {
            panic!("another command")
        };
        assert_eq!(
            (asked.directory.data, asked.segment),
            (PathBuf::from("/d"), Some("s.log".into()))
        );
        assert_eq!((asked.frames, asked.records), (false, true));
    }

    #[test]
    fn restore_takes_a_source_and_a_directory() {
        let words = ["restore", "copy.tar", "--data=/d", "--no-verify"];
        let Some(Command::Restore(asked)) = parsed(&words).unwrap().command else {
            panic!("another command")
        };
        assert_eq!(
            (asked.source, asked.data, asked.no_verify),
            (PathBuf::from("copy.tar"), PathBuf::from("/d"), true)
        );
    }

    #[test]
    fn the_hidden_commands_take_no_flags_of_the_server() {
        assert!(matches!(
            parsed(&["man"]).unwrap().command,
            Some(Command::Man)
        ));
        assert!(matches!(
            parsed(&["completions", "bash"]).unwrap().command,
            Some(Command::Completions { shell: Shell::Bash })
        ));
        assert!(parsed(&["--shards", "2", "man"]).is_err());
    }
}
