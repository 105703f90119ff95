//! The answering end of durable round trips on the runtime of `orlopd`: what is left of a durable set of one client when
//! the runtime is taken as given.
//!
//! One executor of glommio on a thread of its own, one connection, one write at a time: `O_DIRECT|O_DSYNC`, through the
//! io_uring of the executor, from memory that the kernel knows already. Nothing is parsed, looked up or copied. The least
//! that the runtime asks for, so this is a floor; what `orlopd` adds to it is its own. Called by `loopback`, after the
//! same round trips on plain threads and with the file that they wrote.

use std::io;
use std::net::TcpStream;
use std::rc::Rc;
use std::time::Duration;

use futures::io::{AsyncReadExt as _, AsyncWriteExt as _};
use glommio::io::{DmaBuffer, DmaFile, OpenOptions};
use glommio::net::TcpStream as RuntimeStream;
use glommio::{BuilderErrorKind, CpuSet, GlommioError, LocalExecutorBuilder, Placement};
use socket2::Socket;

use super::{ROUND_TRIP_BYTES, refused};
use crate::device::{BLOCK, DurableBlocks};
use crate::process;

/// Memory that the executor registers with its rings, in bytes: the least that it takes, for one block is written.
const IO_MEMORY_BYTES: usize = 64 << 10;

/// Where the executor runs and how it waits.
#[derive(Clone, Copy)]
pub(super) struct RuntimeOptions {
    /// None: wherever the calling thread may.
    pub(super) cpu: Option<usize>,
    /// How long it looks for work before it sleeps.
    pub(super) idle_poll: Duration,
}

/// Answers each message of `stream` when a block is durable, until the peer closes.
pub(super) fn answer(
    stream: TcpStream,
    blocks: DurableBlocks,
    options: RuntimeOptions,
) -> Result<(), String> {
    let executor = LocalExecutorBuilder::new(placement(options.cpu)?)
        .name("loopback")
        .io_memory(IO_MEMORY_BYTES)
        .spin_before_park(options.idle_poll)
        .spawn(move || answer_all(stream, blocks))
        .map_err(not_started)?;
    executor.join().map_err(not_started)?
}

/// Without a CPU it is fenced in where it may run anyway, not unbound: an unbound one sleeps at once, whatever it is told.
fn placement(cpu: Option<usize>) -> Result<Placement, String> {
    if let Some(cpu) = cpu {
        return Ok(Placement::Fixed(cpu));
    }
    let allowed = process::allowed_cpus()?;
    let online = CpuSet::online().map_err(not_started)?;
    Ok(Placement::Fenced(
        online.filter(|location| allowed.contains(&location.cpu)),
    ))
}

/// The sentence for an executor that did not come up: its error says what is missing, not always what that is for.
fn not_started(error: GlommioError<()>) -> String {
    if let GlommioError::BuilderError(BuilderErrorKind::ThreadPanic(what)) = error {
        return format!("the runtime panicked: {what}");
    }
    format!(
        "cannot start the runtime of orlopd, which needs io_uring and 512 KiB of locked memory (ulimit -l): {}",
        io::Error::from(error)
    )
}

async fn answer_all(stream: TcpStream, mut blocks: DurableBlocks) -> Result<(), String> {
    let file = open(&blocks)
        .await
        .map_err(|error| format!("cannot open the zeroed file on the runtime: {error}"))?;
    let block = Rc::new(zeros(&file));
    stream.set_nodelay(true).map_err(refused)?;
    let mut stream = RuntimeStream::from(Socket::from(stream));
    let mut bytes = [0; ROUND_TRIP_BYTES];
    while whole(&mut stream, &mut bytes).await.map_err(refused)? {
        write(&file, &block, blocks.next_at())
            .await
            .map_err(|error| format!("cannot write 4 KiB on the runtime: {error}"))?;
        stream.write_all(&bytes).await.map_err(refused)?;
    }
    Ok(())
}

/// The same file once more, as the runtime wants it: it has no other way to take one that is open.
async fn open(blocks: &DurableBlocks) -> io::Result<DmaFile> {
    let mut options = OpenOptions::new();
    // Read and write together: the runtime probes a file that it opens by reading it. It sets O_DIRECT by itself.
    options.read(true).write(true).custom_flags(libc::O_DSYNC);
    Ok(options.dma_open(blocks.path()).await?)
}

fn zeros(file: &DmaFile) -> DmaBuffer {
    let mut block = file.alloc_dma_buffer(BLOCK);
    block.as_bytes_mut().fill(0);
    block
}

async fn write(file: &DmaFile, block: &Rc<DmaBuffer>, at: u64) -> io::Result<()> {
    let written = file.write_rc_at(Rc::clone(block), at).await?;
    if written != BLOCK {
        return Err(io::Error::other(format!("only {written} bytes of it")));
    }
    Ok(())
}

/// Reads exactly a message. False: the stream ended before it.
async fn whole(stream: &mut RuntimeStream, message: &mut [u8]) -> io::Result<bool> {
    let first = stream.read(message).await?;
    if first > 0 {
        stream.read_exact(&mut message[first..]).await?;
    }
    Ok(first > 0)
}
