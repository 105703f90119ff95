//! `backup`: the parts of a copy, sent to the client's sink with a bounded number unanswered.
//!
//! Guarantees: memory of one call is bounded by the calls of the sink in flight; a dropped call, a sink that does not
//! answer in time and a stop of the server end the copy, and with it the pins of all shards (`shard::backup` sees that
//! nobody takes its parts). The manifest comes last.

use std::time::Duration;

use capnp::Error;
use futures::channel::mpsc::Receiver;
use futures::future::{Either, LocalBoxFuture, select};
use futures::stream::{FuturesUnordered, StreamExt as _};

use super::{decode, fault, info};
use crate::limits;
use crate::proto::ErrorWord;
use crate::proto::orlop_capnp::{backup_outline, backup_sink};
use crate::server::process::Process;
use crate::server::session::Session;
use crate::shard::{BackupOutline, BackupPart, CutFile, CutShard, ShardError};
use crate::storage::directory::MANIFEST_NAME;
use crate::storage::format::FORMAT_VERSION;

/// How long the sink may take.
const STALL_MAX: Duration = Duration::from_secs(limits::BACKUP_STALL_SECONDS_MAX);

/// What was sent.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sent {
    pub(super) files: u32,
    pub(super) bytes: u64,
}

/// Sends a copy of the store to `sink`, and returns how much it was when the sink has answered everything.
pub(super) async fn send_all(session: &Session, sink: &backup_sink::Client) -> Result<Sent, Error> {
    let mut parts = session.shard().begin_backup().map_err(fault::refused)?;
    let mut sending = Sending {
        session,
        sink,
        unanswered: FuturesUnordered::new(),
        sent: Sent::default(),
    };
    let Some(BackupPart::Outline(outline)) = next(session, &mut parts).await? else {
        return Err(cut_short());
    };
    let expected = total(&outline);
    sending.outline(&outline).await?;
    while let Some(part) = next(session, &mut parts).await? {
        match part {
            BackupPart::Outline(_) => return Err(cut_short()),
            BackupPart::File(file) => sending.file(&file).await?,
            BackupPart::Bytes(bytes) => sending.chunk(&bytes).await?,
        }
    }
    let manifest = CutFile {
        name: MANIFEST_NAME.into(),
        bytes: outline.manifest.len() as u64,
        full_bytes: outline.manifest.len() as u64,
    };
    sending.file(&manifest).await?;
    sending.chunk(&outline.manifest).await?;
    sending.answered(0).await?;
    match sending.sent == expected {
        true => Ok(expected),
        false => Err(cut_short()),
    }
}

/// The shard gave up without a word: only a stop of the process does that.
fn cut_short() -> Error {
    ErrorWord::ShuttingDown.error("the backup was cut short: the server is stopping")
}

fn total(outline: &BackupOutline) -> Sent {
    let files = outline.shards.iter().flat_map(|shard| &shard.files);
    let manifest = Sent {
        files: 1,
        bytes: outline.manifest.len() as u64,
    };
    files.fold(manifest, |sum, file| Sent {
        files: sum.files + 1,
        bytes: sum.bytes + file.bytes,
    })
}

/// The next part, unless the server stops.
async fn next(
    session: &Session,
    parts: &mut Receiver<Result<BackupPart, ShardError>>,
) -> Result<Option<BackupPart>, Error> {
    session.check_running()?;
    match select(parts.next(), session.stopping()).await {
        Either::Left((part, _)) => part.transpose().map_err(fault::refused),
        Either::Right(((), _)) => Err(cut_short()),
    }
}

/// The calls of the sink.
struct Sending<'a> {
    session: &'a Session,
    sink: &'a backup_sink::Client,
    unanswered: FuturesUnordered<LocalBoxFuture<'static, Result<(), Error>>>,
    sent: Sent,
}

impl Sending<'_> {
    async fn outline(&mut self, outline: &BackupOutline) -> Result<(), Error> {
        let mut request = self.sink.begin_request();
        let at = request.get().init_outline();
        encode(self.session.process(), outline, at);
        let answer = request.send().promise;
        self.add(async move { answer.await.map(drop) }).await
    }

    async fn file(&mut self, file: &CutFile) -> Result<(), Error> {
        let mut request = self.sink.file_request();
        let mut at = request.get();
        at.set_name(&file.name[..]);
        at.set_bytes(file.bytes);
        at.set_full_bytes(file.full_bytes);
        self.sent.files += 1;
        let answer = request.send().promise;
        self.add(async move { answer.await.map(drop) }).await
    }

    async fn chunk(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let mut request = self.sink.chunk_request();
        request.get().set_data(bytes);
        self.sent.bytes += bytes.len() as u64;
        let answer = request.send().promise;
        self.add(async move { answer.await.map(drop) }).await
    }

    /// Notes a call that was made, and waits while there are too many.
    async fn add(
        &mut self,
        call: impl Future<Output = Result<(), Error>> + 'static,
    ) -> Result<(), Error> {
        self.unanswered.push(Box::pin(call));
        self.answered(limits::BACKUP_CHUNKS_IN_FLIGHT_MAX - 1).await
    }

    /// Waits until at most `unanswered_max` calls are.
    async fn answered(&mut self, unanswered_max: usize) -> Result<(), Error> {
        while self.unanswered.len() > unanswered_max {
            let stalled = Box::pin(glommio::timer::sleep(STALL_MAX));
            let ending = select(self.session.stopping(), stalled);
            match select(self.unanswered.next(), ending).await {
                Either::Left((Some(answer), _)) => answer.map_err(fault::of_sink)?,
                Either::Left((None, _)) => return Ok(()),
                Either::Right((Either::Left(((), _)), _)) => return Err(cut_short()),
                Either::Right((Either::Right(((), _)), _)) => {
                    return Err(ErrorWord::Overloaded.error(format_args!(
                        "the sink of the backup has not answered for {} s, which is the limit",
                        STALL_MAX.as_secs()
                    )));
                }
            }
        }
        Ok(())
    }
}

fn encode(process: &Process, outline: &BackupOutline, mut at: backup_outline::Builder<'_>) {
    let Sent { files, bytes } = total(outline);
    at.set_store_uuid(&process.store_uuid);
    at.set_format_version(FORMAT_VERSION);
    info::placement(process, at.reborrow().init_placement());
    at.set_files(files);
    at.set_bytes(bytes);
    let mut shards = at.init_shards(decode::count(outline.shards.len()));
    for (number, shard) in (0..).zip(&outline.shards) {
        let CutShard {
            last_version,
            files,
        } = shard;
        let mut at = shards.reborrow().get(number);
        at.set_shard(number);
        at.set_last_version(*last_version);
        at.set_files(decode::count(files.len()));
        at.set_bytes(files.iter().map(|file| file.bytes).sum());
    }
}
