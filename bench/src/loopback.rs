//! `orlop-bench loopback`: what a TCP connection over the loopback device can do, as the baseline beside every figure that
//! comes over one.
//!
//! Two threads and plain blocking sockets with TCP_NODELAY: round trips of 64 bytes, one at a time, then messages of 4 MiB
//! in one direction as fast as the other end reads them. What a server adds to the first, and loses of the second, is its
//! own. With `--durable-in` also round trips that are answered when a block is on the device: the least that a durable set
//! of one client takes of a server that sleeps while it waits. Then the same once more, answered on the runtime of
//! `orlopd` (see `runtime`): what of that server's time is the runtime's, and with `--idle-poll` what it takes when it
//! looks for work before it sleeps. Where the threads run decides much: `--cpu` and `--peer-cpu` pin them as server and
//! load are pinned.

mod runtime;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use serde_json::json;

use self::runtime::RuntimeOptions;
use crate::device::DurableBlocks;
use crate::load::{latencies, latency, microseconds, seconds};

const ROUND_TRIP_BYTES: usize = 64;
const MESSAGE_BYTES: usize = 4 << 20;
const MIB: f64 = (1 << 20) as f64;

/// Round trips before those that count: the first ones find cold caches and a sleeping peer.
const WARM_UP_ROUND_TRIPS: usize = 1_000;

#[derive(Debug, Args)]
pub(crate) struct LoopbackOptions {
    /// Seconds of each measurement
    #[arg(long, value_name = "S", default_value = "2", value_parser = seconds)]
    seconds: Duration,

    /// Pin the end that asks and sends to this CPU
    #[arg(long, value_name = "N")]
    cpu: Option<usize>,

    /// Pin the end that answers and receives to this CPU
    #[arg(long, value_name = "N")]
    peer_cpu: Option<usize>,

    /// Measure also round trips that are answered after a 4 KiB O_DSYNC write in this directory (needs 256 MiB): by a
    /// plain thread, then on the runtime of orlopd
    #[arg(long, value_name = "DIR")]
    durable_in: Option<PathBuf>,

    /// How long the end on the runtime looks for work before it sleeps, in microseconds, up to 1000000: as orlopd's
    /// option of the same name
    #[arg(long, value_name = "MICROSECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1_000_000))]
    #[arg(requires = "durable_in")]
    idle_poll: u32,

    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

struct Measured {
    round_trips_ns: Histogram<u64>,
    /// Answered by a plain thread, and on the runtime.
    durable_ns: Option<[Histogram<u64>; 2]>,
    messages: u64,
    /// From the first byte sent to the peer's word that it has the last one.
    sending: Duration,
}

/// Measures and prints. Returns the exit code.
pub(crate) fn run(options: &LoopbackOptions) -> u8 {
    if options.seconds.is_zero() {
        eprintln!("orlop-bench: --seconds is 0: nothing would be measured; give at least 0.1");
        return 2;
    }
    match measure(options) {
        Ok(measured) => {
            print(&measured, options.json);
            0
        }
        Err(sentence) => {
            eprintln!("orlop-bench: {sentence}");
            3
        }
    }
}

fn measure(options: &LoopbackOptions) -> Result<Measured, String> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).map_err(refused)?;
    let address = listener.local_addr().map_err(refused)?;
    let on_runtime = RuntimeOptions {
        cpu: options.peer_cpu,
        idle_poll: Duration::from_micros(options.idle_poll.into()),
    };
    let durable = options.durable_in.as_deref().map(DurableBlocks::create);
    let durable = durable.transpose()?;
    let is_durable = durable.is_some();
    let peer = std::thread::spawn(move || -> Result<(), String> {
        if let Some(cpu) = on_runtime.cpu {
            crate::process::pin(cpu).map_err(|error| error.replace("--cpu", "--peer-cpu"))?;
        }
        answer(&listener, durable, on_runtime)
    });
    if let Some(cpu) = options.cpu {
        crate::process::pin(cpu)?;
    }
    let measured = ask(address, options.seconds, is_durable).map_err(refused);
    // When the peer fails, what this end saw is only a connection that went.
    peer.join().map_err(|_| "the other end panicked")??;
    measured
}

fn refused(error: io::Error) -> String {
    format!("cannot use the loopback device: {error}")
}

/// All connections are there from the start: whatever goes wrong at this end, they close and the other end is done.
fn ask(address: SocketAddr, each: Duration, is_durable: bool) -> io::Result<Measured> {
    let connect = || TcpStream::connect(address);
    let echo = connect()?;
    let durable = is_durable.then(|| Ok::<_, io::Error>((connect()?, connect()?)));
    let durable = durable.transpose()?;
    let mut sink = connect()?;
    let round_trips_ns = round_trips(echo, each)?;
    let durable_ns = durable.map(|(plain, on_runtime)| {
        Ok::<_, io::Error>([round_trips(plain, each)?, round_trips(on_runtime, each)?])
    });
    let durable_ns = durable_ns.transpose()?;
    let (messages, sending) = send(&mut sink, each)?;
    Ok(Measured {
        round_trips_ns,
        durable_ns,
        messages,
        sending,
    })
}

/// The other end: echoes on the first connection, on the next two when a block is durable (here, then on the runtime),
/// counts and tells on the last.
fn answer(
    listener: &TcpListener,
    durable: Option<DurableBlocks>,
    on_runtime: RuntimeOptions,
) -> Result<(), String> {
    let accept = || listener.accept().map(|(stream, _)| stream).map_err(refused);
    let echo = accept()?;
    let durable = durable.map(|blocks| Ok::<_, String>((blocks, accept()?, accept()?)));
    let durable = durable.transpose()?;
    let sink = accept()?;
    echo_all(echo, || Ok(())).map_err(refused)?;
    if let Some((mut blocks, here, there)) = durable {
        echo_all(here, || blocks.write()).map_err(refused)?;
        runtime::answer(there, blocks, on_runtime)?;
    }
    count(sink).map_err(refused)
}

fn count(mut sink: TcpStream) -> io::Result<()> {
    let mut message = vec![0; MESSAGE_BYTES];
    let mut messages = 0u64;
    while whole(&mut sink, &mut message)? {
        messages += 1;
    }
    sink.write_all(&messages.to_le_bytes())
}

fn echo_all(mut echo: TcpStream, mut before: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    echo.set_nodelay(true)?;
    let mut bytes = [0; ROUND_TRIP_BYTES];
    while whole(&mut echo, &mut bytes)? {
        before()?;
        echo.write_all(&bytes)?;
    }
    Ok(())
}

/// Reads exactly a message. False: the stream ended before it.
fn whole(stream: &mut TcpStream, message: &mut [u8]) -> io::Result<bool> {
    let first = stream.read(message)?;
    if first > 0 {
        stream.read_exact(&mut message[first..])?;
    }
    Ok(first > 0)
}

/// Closes the stream at the end: the other end is done with it.
fn round_trips(mut stream: TcpStream, each: Duration) -> io::Result<Histogram<u64>> {
    stream.set_nodelay(true)?;
    let mut bytes = [7; ROUND_TRIP_BYTES];
    for _ in 0..WARM_UP_ROUND_TRIPS {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
    }
    let mut round_trips_ns = latencies();
    let begun = Instant::now();
    let mut last = begun;
    while last - begun < each {
        stream.write_all(&bytes)?;
        stream.read_exact(&mut bytes)?;
        let now = Instant::now();
        round_trips_ns.saturating_record((now - last).as_nanos() as u64);
        last = now;
    }
    Ok(round_trips_ns)
}

fn send(stream: &mut TcpStream, each: Duration) -> io::Result<(u64, Duration)> {
    stream.set_nodelay(true)?;
    let message = vec![7; MESSAGE_BYTES];
    let begun = Instant::now();
    let mut sent = 0u64;
    while begun.elapsed() < each {
        stream.write_all(&message)?;
        sent += 1;
    }
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut received = [0; size_of::<u64>()];
    stream.read_exact(&mut received)?;
    let received = u64::from_le_bytes(received);
    if received != sent {
        return Err(io::Error::other(format!(
            "{sent} messages were sent and {received} received"
        )));
    }
    Ok((received, begun.elapsed()))
}

impl Measured {
    fn mib_per_second(&self) -> f64 {
        let mib = self.messages as f64 * MESSAGE_BYTES as f64 / MIB;
        (mib / self.sending.as_secs_f64()).round()
    }
}

fn print(measured: &Measured, as_json: bool) {
    let mut round_trips = vec![("round trips", "roundTripUs", &measured.round_trips_ns)];
    if let Some([plain, on_runtime]) = &measured.durable_ns {
        round_trips.push(("durable ones", "durableRoundTripUs", plain));
        let name = "the runtime's durable ones";
        round_trips.push((name, "runtimeDurableRoundTripUs", on_runtime));
    }
    if as_json {
        let mut object = json!({
            "orlopBench": "loopback",
            "version": env!("CARGO_PKG_VERSION"),
            "messages": measured.messages,
            "mibPerSecond": measured.mib_per_second(),
        });
        for (_, field, latencies_ns) in round_trips {
            object[field] = json!({
                "count": latencies_ns.len(),
                "p50Us": microseconds(latencies_ns.value_at_quantile(0.5)),
                "p99Us": microseconds(latencies_ns.value_at_quantile(0.99)),
                "maxUs": microseconds(latencies_ns.max()),
            });
        }
        println!("{object}");
        return;
    }
    for (name, _, latencies_ns) in round_trips {
        println!(
            "{name} of {ROUND_TRIP_BYTES} B, one at a time: p50 {}, p99 {} ({} of them)",
            latency(latencies_ns.value_at_quantile(0.5)),
            latency(latencies_ns.value_at_quantile(0.99)),
            latencies_ns.len()
        );
    }
    println!(
        "messages of 4 MiB, one way: {} MiB/s ({} of them)",
        measured.mib_per_second(),
        measured.messages
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(peer_cpu: Option<usize>) -> LoopbackOptions {
        LoopbackOptions {
            seconds: Duration::from_millis(20),
            cpu: None,
            peer_cpu,
            durable_in: None,
            idle_poll: 0,
            json: true,
        }
    }

    #[test]
    fn both_directions_are_measured() {
        let measured = measure(&options(None)).expect("the loopback device is there");
        assert!(!measured.round_trips_ns.is_empty());
        assert!(measured.messages > 0 && measured.mib_per_second() > 0.0);
    }

    #[test]
    fn a_directory_that_is_none_is_named() {
        let asked = LoopbackOptions {
            durable_in: Some("no-such-directory".into()),
            ..options(None)
        };
        let error = measure(&asked).err().unwrap_or_default();
        assert!(error.contains("no-such-directory"), "{error}");
    }

    #[test]
    fn a_cpu_that_is_not_there_is_named_with_its_option() {
        let error = measure(&options(Some(1_023))).err().unwrap_or_default();
        assert!(error.contains("1023 (--peer-cpu)"), "{error}");
    }
}
