//! `orlop backup`: writes what the server sends of its store into a directory or a tar stream.
//!
//! Guarantees: the copy appears whole and durable, or nothing of it is left (`partial`); of a tar stream to standard
//! output that breaks off, the last file is missing, by which `orlopd restore` knows. Does not: verify what it writes.

use std::cell::{Cell, RefCell};
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, IsTerminal as _, Write};
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use indicatif::{ProgressBar, ProgressStyle};
use orlop::client::{BackupOutline, BackupPart, Client, ClientError};
use orlop::partial::{Partial, PartialError};
use serde_json::{Value, json};

use crate::arguments::{Backup, Connection};
use crate::commands::{Answer, Failure};
use crate::show::{self, Style};

/// What a tar stream is made of, in bytes.
const TAR_BLOCK: u64 = 512;

/// Bytes that are collected for one write to a tar stream.
const TAR_BUFFER_BYTES: usize = 1 << 20;

/// How often it is looked whether the server still sends.
const LOOK: Duration = Duration::from_millis(100);

/// Makes the copy and says what it holds.
pub(crate) async fn run(
    client: &Client,
    connection: &Connection,
    asked: &Backup,
    style: Style,
    output: &mut dyn Write,
) -> Result<Answer, Failure> {
    let copy = Copy::begin(&asked.target)?;
    let to_output = copy.is_to_output();
    let begun = Instant::now();
    let receiving = Rc::new(Receiving {
        copy: RefCell::new(Some(copy)),
        failure: RefCell::default(),
        heard: Cell::new(begun),
    });
    let received = receive(client, connection, &receiving).await;
    // Whoever still holds the sink has nothing to write to any more.
    let copy = receiving.copy.take().expect("only this takes it");
    let outline = received?;
    copy.finish()?;
    let result = Made {
        target: &asked.target,
        outline: &outline,
        took: begun.elapsed(),
    };
    let line = result.to_line(asked.json, style);
    match to_output {
        true => eprintln!("{line}"),
        false => writeln!(output, "{line}").map_err(Failure::output)?,
    }
    Ok(Answer::Done)
}

/// What the sink and the command share.
struct Receiving {
    copy: RefCell<Option<Copy>>,
    /// Why a part was refused.
    failure: RefCell<Option<Failure>>,
    /// When the last part was dealt with.
    heard: Cell<Instant>,
}

/// Runs the call to its end, as long as something comes in time.
async fn receive(
    client: &Client,
    connection: &Connection,
    receiving: &Rc<Receiving>,
) -> Result<BackupOutline, Failure> {
    let sink = Rc::clone(receiving);
    let call = client.backup(move |part| {
        let mut copy = sink.copy.borrow_mut();
        let Some(copy) = copy.as_mut() else {
            return Err("the copy has ended".into());
        };
        let taken = copy.take(part).map_err(|failure| {
            let reason = failure.to_string();
            *sink.failure.borrow_mut() = Some(failure);
            reason
        });
        sink.heard.set(Instant::now());
        taken
    });
    let mut call = std::pin::pin!(call);
    let ended = loop {
        match tokio::time::timeout(LOOK, &mut call).await {
            Ok(ended) => break ended,
            Err(_) if receiving.heard.get().elapsed() < connection.timeout => {}
            Err(_) => {
                return Err(Failure::Timeout {
                    address: connection.server.to_string(),
                    waited: connection.timeout,
                });
            }
        }
    };
    match (ended, receiving.failure.take()) {
        (Err(ClientError::Stopped(_)), Some(failure)) => Err(failure),
        (ended, _) => Ok(ended?),
    }
}

/// A copy that is being written.
struct Copy {
    form: Form,
    bar: ProgressBar,
}

enum Form {
    Directory(Directory),
    Tar(Tar),
}

/// Files in a directory, each with its full length.
struct Directory {
    partial: Partial,
    open: Option<(File, u64)>,
}

/// Files behind each other. What they are filled up with is left out: "orlopd restore" adds it.
struct Tar {
    /// `None`: standard output.
    partial: Option<Partial>,
    out: io::BufWriter<File>,
    mtime: u64,
    /// What fills the last block of the file that is being written.
    padding: u64,
}

fn local(error: PartialError) -> Failure {
    Failure::Input(error.to_string())
}

fn unwritable(path: &Path, error: &io::Error) -> Failure {
    Failure::Input(format!("cannot write {}: {error}", path.display()))
}

impl Copy {
    fn begin(target: &Path) -> Result<Copy, Failure> {
        let form = if target == Path::new("-") {
            Form::Tar(Tar::to_output()?)
        } else if target.extension() == Some(OsStr::new("tar")) {
            let partial = Partial::file(target).map_err(local)?;
            Form::Tar(Tar::to_file(partial)?)
        } else {
            let partial = Partial::directory(target).map_err(local)?;
            Form::Directory(Directory {
                partial,
                open: None,
            })
        };
        let bar = ProgressBar::hidden();
        Ok(Copy { form, bar })
    }

    /// Whether standard output is taken by it.
    fn is_to_output(&self) -> bool {
        matches!(&self.form, Form::Tar(tar) if tar.partial.is_none())
    }

    fn take(&mut self, part: BackupPart<'_>) -> Result<(), Failure> {
        match part {
            BackupPart::Begin(outline) => {
                self.bar = progress(outline.bytes);
                Ok(())
            }
            BackupPart::File {
                name,
                bytes,
                full_bytes,
            } => match &mut self.form {
                Form::Directory(directory) => directory.file(name, full_bytes),
                Form::Tar(tar) => tar.file(name, bytes),
            },
            BackupPart::Bytes(bytes) => {
                self.bar.inc(bytes.len() as u64);
                match &mut self.form {
                    Form::Directory(directory) => directory.bytes(bytes),
                    Form::Tar(tar) => tar.bytes(bytes),
                }
            }
        }
    }

    fn finish(self) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        match self.form {
            Form::Directory(directory) => directory.finish(),
            Form::Tar(tar) => tar.finish(),
        }
    }
}

impl Directory {
    fn file(&mut self, name: &str, full_bytes: u64) -> Result<(), Failure> {
        self.end_file()?;
        let file = self.partial.create(name).map_err(local)?;
        self.open = Some((file, full_bytes));
        Ok(())
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let (file, _) = self.open.as_mut().expect("the client checks the order");
        let written = file.write_all(bytes);
        written.map_err(|error| unwritable(self.partial.path(), &error))
    }

    fn end_file(&mut self) -> Result<(), Failure> {
        let Some((file, full_bytes)) = self.open.take() else {
            return Ok(());
        };
        let ended = file.set_len(full_bytes).and_then(|()| file.sync_all());
        ended.map_err(|error| unwritable(self.partial.path(), &error))
    }

    fn finish(mut self) -> Result<(), Failure> {
        self.end_file()?;
        self.partial.finish().map_err(local)
    }
}

impl Tar {
    fn to_output() -> Result<Tar, Failure> {
        if io::stdout().is_terminal() {
            let reason =
                "a tar stream is nothing for a terminal: name a file, or send it through a pipe";
            return Err(Failure::Input(reason.into()));
        }
        let stdout = std::os::fd::AsFd::as_fd(&io::stdout()).try_clone_to_owned();
        let stdout = stdout.map_err(|error| unwritable(Path::new("standard output"), &error))?;
        Ok(Tar::new(File::from(stdout), None))
    }

    fn to_file(partial: Partial) -> Result<Tar, Failure> {
        let file = partial.as_file().try_clone();
        let file = file.map_err(|error| unwritable(partial.path(), &error))?;
        Ok(Tar::new(file, Some(partial)))
    }

    fn new(file: File, partial: Option<Partial>) -> Tar {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Tar {
            partial,
            out: io::BufWriter::with_capacity(TAR_BUFFER_BYTES, file),
            mtime: now.unwrap_or_default().as_secs(),
            padding: 0,
        }
    }

    fn refused(&self) -> impl Fn(io::Error) -> Failure + use<> {
        let path = match &self.partial {
            Some(partial) => partial.path().to_owned(),
            None => "standard output".into(),
        };
        move |error| unwritable(&path, &error)
    }

    fn pad(&mut self) -> io::Result<()> {
        let zeros = [0; TAR_BLOCK as usize];
        let padding = std::mem::take(&mut self.padding);
        self.out.write_all(&zeros[..padding as usize])
    }

    fn file(&mut self, name: &str, bytes: u64) -> Result<(), Failure> {
        let refused = self.refused();
        self.pad().map_err(&refused)?;
        let mut header = tar::Header::new_ustar();
        header.set_path(name).map_err(&refused)?;
        header.set_size(bytes);
        header.set_mode(0o600);
        header.set_mtime(self.mtime);
        header.set_entry_type(tar::EntryType::Regular);
        header.set_cksum();
        self.padding = bytes.next_multiple_of(TAR_BLOCK) - bytes;
        self.out.write_all(header.as_bytes()).map_err(refused)
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(self.refused())
    }

    fn finish(mut self) -> Result<(), Failure> {
        let refused = self.refused();
        self.pad().map_err(&refused)?;
        let end = [0; 2 * TAR_BLOCK as usize];
        self.out.write_all(&end).map_err(&refused)?;
        self.out.flush().map_err(refused)?;
        match self.partial {
            Some(partial) => partial.finish().map_err(local),
            None => Ok(()),
        }
    }
}

/// A bar on standard error, if that is a terminal.
fn progress(bytes: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = "backup {bar:40} {bytes} of {total_bytes}, {binary_bytes_per_sec}, {eta} left";
    ProgressBar::new(bytes)
        .with_style(ProgressStyle::with_template(style).expect("the template is a constant"))
}

/// A copy that was made.
struct Made<'a> {
    target: &'a Path,
    outline: &'a BackupOutline,
    took: Duration,
}

impl Made<'_> {
    fn to_line(&self, json: bool, style: Style) -> String {
        let BackupOutline {
            store_uuid,
            format_version,
            files,
            bytes,
            shards,
            ..
        } = self.outline;
        let uuid = show::hexadecimal(store_uuid, "");
        let target = self.target.display().to_string();
        let versions: Vec<String> = shards
            .iter()
            .map(|shard| shard.last_version.to_string())
            .collect();
        let microseconds = u64::try_from(self.took.as_micros()).unwrap_or(u64::MAX);
        if json {
            let shard = |one: &orlop::client::BackupShard| {
                json!({
                    "shard": one.shard,
                    "lastVersion": one.last_version,
                    "files": one.files,
                    "bytes": one.bytes,
                })
            };
            let shards: Vec<Value> = shards.iter().map(shard).collect();
            return json!({
                "target": target,
                "storeUuid": uuid,
                "formatVersion": format_version,
                "files": files,
                "bytes": bytes,
                "tookUs": microseconds,
                "shards": shards,
            })
            .to_string();
        }
        if style.human {
            return format!(
                "{target}: {files} files, {} in {}, last version of each shard: {}",
                show::size(*bytes),
                show::duration(microseconds),
                versions.join(" ")
            );
        }
        format!(
            "target\t{target}\tfiles\t{files}\tbytes\t{bytes}\tlast_versions\t{}",
            versions.join(",")
        )
    }
}
