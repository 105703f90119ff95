//! Pages of keys in order, and values brought back into memory after a start: the two ways in which a store is read
//! other than key by key.

use std::rc::Rc;

use futures::stream::{StreamExt as _, TryStreamExt as _, iter};

use crate::storage::cache::Warmed;
use crate::storage::disk::Disk;
use crate::storage::error::StorageError;
use crate::storage::format::{RecordKind, SEGMENT_HEADER_BYTES, read_frame};
use crate::storage::lookup::DiskRef;
use crate::storage::reader::Value;
use crate::storage::scan::Scanner;
use crate::storage::segment::SegmentId;
use crate::storage::store::Store;

/// Reads in flight for the values of one page.
const PAGE_READS_AHEAD: usize = 16;

/// Which keys a page holds.
#[derive(Debug, Clone, Copy)]
pub struct PrefixQuery<'a> {
    /// What the keys start with; empty: all keys.
    pub prefix: &'a [u8],
    /// The page begins with the first key greater than this; empty: at the start.
    pub after: &'a [u8],
    /// Entries at most; at least 1.
    pub max_entries: usize,
    /// Keys and values at most, in bytes; the first entry may be larger.
    pub max_bytes: usize,
    /// Leave the values out.
    pub keys_only: bool,
}

/// A present key of a page.
pub struct PageEntry {
    /// The key.
    pub key: Box<[u8]>,
    /// Its value; `None` when only keys were asked for.
    pub value: Option<Value>,
    /// Its version.
    pub version: u64,
}

/// A page of keys, in order.
#[derive(Default)]
pub struct Page {
    /// The entries.
    pub entries: Vec<PageEntry>,
    /// Whether there are further keys behind the last one.
    pub more: bool,
}

/// A value that a page lacks, and the position of its entry.
type Missing<F> = (usize, DiskRef<F>);

impl<D: Disk, W> Store<D, W> {
    /// A page of present keys. Every entry is durable; the page is the state at one moment.
    ///
    /// # Errors
    /// As [`Store::read`], for values that are not in memory.
    pub async fn page(&self, query: &PrefixQuery<'_>) -> Result<Page, StorageError> {
        assert!(
            query.max_entries > 0,
            "the service checks the limits of a page"
        );
        let (mut page, missing) = self.page_in_memory(query);
        let read = |(at, on_disk)| async move {
            Ok::<_, StorageError>((at, self.read(on_disk).await?.value))
        };
        let mut reads = iter(missing).map(read).buffer_unordered(PAGE_READS_AHEAD);
        while let Some((at, value)) = reads.try_next().await? {
            page.entries[at].value = Some(value);
        }
        Ok(page)
    }

    /// A page with the values that are in memory, and what is missing.
    fn page_in_memory(&self, query: &PrefixQuery<'_>) -> (Page, Vec<Missing<D::File>>) {
        let (index, segments) = (self.index.borrow(), self.segments.borrow());
        let (mut page, mut missing, mut bytes) = (Page::default(), Vec::new(), 0);
        for (present, cached) in index.range(query.prefix, query.after) {
            let value_len = if query.keys_only {
                0
            } else {
                present.value_len
            };
            bytes += present.key.len() + value_len;
            let at = page.entries.len();
            if at == query.max_entries || (bytes > query.max_bytes && at > 0) {
                page.more = true;
                break;
            }
            let key: Box<[u8]> = present.key.into();
            let version = present.version;
            let value = cached.filter(|_| !query.keys_only).map(Value::Cached);
            if value.is_none() && !query.keys_only {
                let on_disk = DiskRef::new(&segments, &key, version, present.location);
                missing.push((at, on_disk));
            }
            page.entries.push(PageEntry {
                key,
                value,
                version,
            });
        }
        (page, missing)
    }

    /// Segments whose values a start can bring back into memory, newest first. Called once, when that begins.
    pub fn warm_order(&self) -> Vec<SegmentId> {
        let index = self.index.borrow();
        let (_, budget, ..) = index.cache_stat();
        self.warm_total_bytes.set(index.value_bytes().min(budget));
        let segments = self.segments.borrow();
        let mut order: Vec<_> = segments.iter().collect();
        order.sort_by_key(|(_, segment)| std::cmp::Reverse(segment.first_version));
        order.into_iter().map(|(id, _)| id).collect()
    }

    /// Brings values of one segment back into memory, as long as nothing has to go for them. Returns false when the
    /// cache is full. Await points are the reads only; a caller that shares its thread bounds each step by them.
    ///
    /// # Errors
    /// `Corrupt` when a frame does not verify any more, `Io`.
    pub async fn warm(&self, id: SegmentId) -> Result<bool, StorageError> {
        let (file, file_name, limit) = {
            let segments = self.segments.borrow();
            let Some(segment) = segments.get(id) else {
                // Retired meanwhile; what lived there is elsewhere.
                return Ok(true);
            };
            let file = Rc::clone(&segment.file);
            (file, segment.file_name(), segment.used_bytes)
        };
        let mut scanner = Scanner::new(file, file_name, SEGMENT_HEADER_BYTES as u64, limit);
        while scanner.position() < limit {
            let (header, frame) = scanner.frame().await?;
            let mut room = true;
            let mut index = self.index.borrow_mut();
            let verified = read_frame(&header, frame, |_, record| {
                if room && record.kind == RecordKind::Set {
                    let warmed = index.warm_value(record.key, record.version, record.value);
                    room = warmed != Warmed::Full;
                    if warmed == Warmed::Taken {
                        self.warmed_bytes
                            .set(self.warmed_bytes.get() + record.value.len() as u64);
                    }
                }
            });
            drop(index);
            if let Err((at, what)) = verified {
                return Err(scanner.corrupt(at, what));
            }
            if !room {
                return Ok(false);
            }
            scanner.consume(header.frame_bytes());
        }
        Ok(true)
    }
}
