//! `orlop-bench`: measures orlop and what it is compared with. Reads the command line and calls the measurement; holds no logic of its own.
//!
//! Exit codes: 0 done, 1 wrong answer, 2 wrong usage, 3 an error of the server or of this machine, 4 no connection or a
//! lost one, 128 + signal when interrupted.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod device;
mod load;
mod loopback;
mod power_cut;
mod process;
mod report;
mod serve;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

// The system's gives large memory back at once, and half of the time of reading 4 MiB values went into taking it again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXIT_CODES: &str = "Exit codes: 0 done, 1 wrong answer, 2 wrong usage, 3 an error of the server or of this machine, \
4 no connection or a lost one, 128 + signal when interrupted (130 for Ctrl-C).";

/// Load generator and baselines for orlop
#[derive(Parser)]
#[command(version, after_help = EXIT_CODES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Load a server and report throughput and latencies
    #[command(after_help = EXIT_CODES)]
    Load(load::LoadOptions),
    /// Measure the device under a directory, as the baseline of durable figures
    #[command(after_help = EXIT_CODES)]
    Device(device::DeviceOptions),
    /// Measure a TCP connection over the loopback device, as the baseline of everything that comes over one
    #[command(after_help = EXIT_CODES)]
    Loopback(loopback::LoopbackOptions),
    /// Serve an embedded engine over orlop's protocol, as a peer to compare with
    #[command(after_help = EXIT_CODES)]
    Serve(serve::ServeOptions),
    /// Read back what an ack log promises
    #[command(after_help = EXIT_CODES)]
    Check(check::CheckOptions),
    /// Make tables, plots and a page from the raw results of scripts/experiments.sh
    #[command(after_help = EXIT_CODES)]
    Report(report::ReportOptions),
    /// Cut the power of a server's device, many times, and see what is left (see scripts/powercut.sh)
    #[command(subcommand, after_help = EXIT_CODES)]
    PowerCut(power_cut::PowerCut),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    ExitCode::from(match arguments.command {
        Command::Load(options) => load::run(&options),
        Command::Device(options) => device::run(&options),
        Command::Loopback(options) => loopback::run(&options),
        Command::Serve(options) => serve::run(&options),
        Command::Check(options) => check::run(&options),
        Command::Report(options) => report::run(&options),
        Command::PowerCut(command) => power_cut::run(&command),
    })
}
