//! `orlop`, the command line client: reads its arguments, runs one command against a server and turns the result into
//! an exit code.
//!
//! It adds nothing to what the library's client can do; `arguments.rs` is its surface, `commands.rs` what the commands
//! do (`backup.rs` the one that writes files), and `show.rs` how results look.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arguments;
mod backup;
mod commands;
mod show;
mod stat;
#[cfg(test)]
mod tests;

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use arguments::{Arguments, Command};
use commands::{Answer, Failure};

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let style = show::Style {
        human: io::stdout().is_terminal(),
    };
    let mut output = io::BufWriter::with_capacity(64 << 10, io::stdout().lock());
    let result = run(arguments, style, &mut output);
    let result = result.and_then(|answer| output.flush().map(|()| answer).map_err(Failure::output));
    match result {
        Ok(answer) => answer.exit_code(),
        // The reader has seen enough.
        Err(Failure::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("orlop: {failure}");
            failure.exit_code()
        }
    }
}

fn run(
    arguments: Arguments,
    style: show::Style,
    output: &mut dyn Write,
) -> Result<Answer, Failure> {
    match arguments.command {
        Command::Completions { shell } => {
            // Into memory first: the generator panics when its output breaks off.
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "orlop", &mut script);
            output.write_all(&script).map_err(Failure::output)?;
            Ok(Answer::Done)
        }
        Command::Man => {
            clap_mangen::Man::new(Arguments::command())
                .render(output)
                .map_err(Failure::output)?;
            Ok(Answer::Done)
        }
        Command::Server(command) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(Failure::runtime)?;
            let work = commands::run(&arguments.connection, command, style, output);
            tokio::task::LocalSet::new().block_on(&runtime, work)
        }
    }
}
