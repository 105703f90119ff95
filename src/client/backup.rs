//! The receiving end of `backup`: a capability that checks the order of what comes and hands each part to a closure.
//!
//! Guarantees: names are plain names of files, so that whoever writes them stays in one directory; a copy that ends
//! without an error is complete. Does not: write files, or know what is in them.

use std::cell::RefCell;
use std::rc::Rc;

use super::sink::Refusal;
use super::stat::Placement;
use super::{Client, ClientError, malformed};
use crate::proto::orlop_capnp::{backup_outline, backup_sink};

/// Longest name of a file of a copy, in bytes.
const NAME_LEN_MAX: usize = 100;

/// What a copy holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackupOutline {
    /// Identity of the store.
    pub store_uuid: Vec<u8>,
    /// Format of the files.
    pub format_version: u32,
    /// Which shard owns a key.
    pub placement: Placement,
    /// Number of files.
    pub files: u32,
    /// Bytes of all files, without the zeros that some are filled up with.
    pub bytes: u64,
    /// The shards, in order.
    pub shards: Vec<BackupShard>,
}

/// What a copy holds of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupShard {
    /// The shard.
    pub shard: u32,
    /// The last version that is in the copy.
    pub last_version: u64,
    /// Number of its files.
    pub files: u32,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A part of a copy, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupPart<'a> {
    /// What will come; first and once.
    Begin(&'a BackupOutline),
    /// The next file. The one before it is complete.
    File {
        /// Its name: letters, digits, dots, hyphens; no path.
        name: &'a str,
        /// How many bytes come.
        bytes: u64,
        /// Length that it must have in a directory that is served; zeros are behind what comes.
        full_bytes: u64,
    },
    /// The next bytes of the file.
    Bytes(&'a [u8]),
}

/// What has come so far.
#[derive(Default)]
struct Received {
    outline: Option<BackupOutline>,
    files: u32,
    bytes: u64,
    /// Of the present file.
    missing: u64,
}

struct Sink<F> {
    on_part: RefCell<F>,
    received: Rc<RefCell<Received>>,
    refusal: Refusal,
}

impl Client {
    /// A copy of the store while it serves, part by part to `on_part`; returns what it holds when it is complete. It has
    /// every write that was answered before. The server sends a few MiB ahead at most, and ends the copy when
    /// `on_part` takes longer than a minute. Dropping the future stops it; an error from `on_part` does too and comes
    /// back as [`ClientError::Stopped`].
    pub async fn backup(
        &self,
        on_part: impl FnMut(BackupPart<'_>) -> Result<(), String> + 'static,
    ) -> Result<BackupOutline, ClientError> {
        let (received, refusal) = (Rc::<RefCell<Received>>::default(), Refusal::default());
        let sink = Sink {
            on_part: RefCell::new(on_part),
            received: Rc::clone(&received),
            refusal: Rc::clone(&refusal),
        };
        let mut request = self.0.store.backup_request();
        request.get().set_sink(capnp_rpc::new_client(sink));
        let answer = request.send().promise.await;
        if let Some(reason) = refusal.take() {
            return Err(ClientError::Stopped(reason));
        }
        let response = answer.map_err(|error| self.exception(&error))?;
        let results = response.get().map_err(malformed)?;
        let sent = (results.get_files(), results.get_bytes());
        received.take().complete(sent)
    }
}

impl Received {
    fn complete(self, sent: (u32, u64)) -> Result<BackupOutline, ClientError> {
        let came = (self.files, self.bytes);
        match self.outline {
            Some(outline) if came == sent && came == (outline.files, outline.bytes) => Ok(outline),
            _ => Err(ClientError::Protocol(format!(
                "{} files with {} bytes came, the server says it sent {} files with {} bytes",
                came.0, came.1, sent.0, sent.1
            ))),
        }
    }

    fn file(&mut self, name: &str, bytes: u64, full_bytes: u64) -> Result<(), String> {
        if self.outline.is_none() || self.missing > 0 {
            return Err(format!(
                "{name} begins before what comes before it is complete"
            ));
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty()
            || name.len() > NAME_LEN_MAX
            || name.starts_with('.')
            || !name.chars().all(plain)
        {
            return Err(format!("the server sends a file named {name:?}"));
        }
        if full_bytes < bytes {
            return Err(format!(
                "{name} has {bytes} bytes and a full length of {full_bytes}"
            ));
        }
        self.files += 1;
        self.missing = bytes;
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), String> {
        let len = bytes.len() as u64;
        let missing = self.missing.checked_sub(len);
        self.missing = missing.ok_or("more bytes come than the file has")?;
        self.bytes += len;
        Ok(())
    }
}

impl<F> Sink<F>
where
    F: FnMut(BackupPart<'_>) -> Result<(), String> + 'static,
{
    /// Hands a part on, unless one was refused before.
    fn take(&self, part: BackupPart<'_>, expected: Result<(), String>) -> Result<(), capnp::Error> {
        if let Some(reason) = &*self.refusal.borrow() {
            return Err(capnp::Error::failed(reason.clone()));
        }
        let answer = expected.and_then(|()| (self.on_part.borrow_mut())(part));
        answer.map_err(|reason| {
            *self.refusal.borrow_mut() = Some(reason.clone());
            capnp::Error::failed(reason)
        })
    }
}

impl<F> backup_sink::Server for Sink<F>
where
    F: FnMut(BackupPart<'_>) -> Result<(), String> + 'static,
{
    async fn begin(
        self: Rc<Self>,
        params: backup_sink::BeginParams,
        _: backup_sink::BeginResults,
    ) -> Result<(), capnp::Error> {
        let outline = read_outline(params.get()?.get_outline()?)?;
        let before = self.received.borrow_mut().outline.replace(outline.clone());
        let expected = match before {
            None => Ok(()),
            Some(_) => Err("the copy begins twice".into()),
        };
        self.take(BackupPart::Begin(&outline), expected)
    }

    async fn file(
        self: Rc<Self>,
        params: backup_sink::FileParams,
        _: backup_sink::FileResults,
    ) -> Result<(), capnp::Error> {
        let params = params.get()?;
        let (bytes, full_bytes) = (params.get_bytes(), params.get_full_bytes());
        let name = params.get_name()?.to_str()?;
        let part = BackupPart::File {
            name,
            bytes,
            full_bytes,
        };
        let expected = self.received.borrow_mut().file(name, bytes, full_bytes);
        self.take(part, expected)
    }

    async fn chunk(
        self: Rc<Self>,
        params: backup_sink::ChunkParams,
        _: backup_sink::ChunkResults,
    ) -> Result<(), capnp::Error> {
        let data = params.get()?.get_data()?;
        let expected = self.received.borrow_mut().bytes(data);
        self.take(BackupPart::Bytes(data), expected)
    }
}

fn read_outline(from: backup_outline::Reader<'_>) -> Result<BackupOutline, capnp::Error> {
    let failed = |error: ClientError| capnp::Error::failed(error.to_string());
    let shards = from.get_shards()?;
    let shards = shards.iter().map(|shard| BackupShard {
        shard: shard.get_shard(),
        last_version: shard.get_last_version(),
        files: shard.get_files(),
        bytes: shard.get_bytes(),
    });
    Ok(BackupOutline {
        store_uuid: from.get_store_uuid()?.to_vec(),
        format_version: from.get_format_version(),
        placement: Placement::read(from.get_placement()?).map_err(failed)?,
        files: from.get_files(),
        bytes: from.get_bytes(),
        shards: shards.collect(),
    })
}
