//! The judge of a damaged store: which outcomes are right.

use std::collections::BTreeMap;
use std::ops::Range;
use std::rc::Rc;

use super::story::{Story, frames, stories};
use super::{CHECKED_ONE_IN, SHARD, options};
use crate::storage::disk::BLOCK;
use crate::storage::disk::sim::{Image, Rng, SimDisk};
use crate::storage::format::{FrameHeader, RecordKind, SEGMENT_HEADER_BYTES, read_frame};
use crate::storage::tests::executor::run;
use crate::storage::tests::life::{Engine, Life, Opening, verify_alone};
use crate::storage::tests::model::Model;
use crate::storage::{Lookup, Recovered, StorageError};

/// Where damage was done: the start refused must name one of these files, and an offset in one of these places unless
/// there is none.
pub(super) type Places = Vec<(String, Range<u64>)>;

#[derive(Default, Debug)]
pub(super) struct Figures {
    pub(super) mutations: u64,
    pub(super) refused: u64,
    unharmed: u64,
    last_frame_taken_for_torn: u64,
    /// As if it had never been written: nothing on disk can tell.
    last_frame_erased: u64,
    /// The start succeeded, and the reads of what was damaged were refused.
    pub(super) reads_refused: u64,
    /// Those on which a check of the whole log was compared with the start.
    checked: u64,
}

pub(super) struct Sweep<'a> {
    pub(super) story: &'a Story,
    pub(super) frames: BTreeMap<String, Vec<Range<u64>>>,
    pub(super) figures: &'a mut Figures,
}

/// What the start of a damaged store came to.
enum Start {
    Refused(StorageError),
    /// Every read succeeds.
    Unharmed,
    ReadsRefused,
}

impl Sweep<'_> {
    /// The frame that a byte is in, the header, or where the frames end up to the block of the byte: what is written
    /// there contradicts that end.
    pub(super) fn around(&self, file: &str, byte: usize) -> (String, Range<u64>) {
        let (byte, header) = (byte as u64, SEGMENT_HEADER_BYTES as u64);
        let frames = &self.frames[file];
        let end = frames.last().map_or(header, |frame| frame.end);
        let range = match frames.iter().find(|frame| frame.contains(&byte)) {
            Some(frame) => frame.clone(),
            None if byte < header => 0..header,
            None => end..(byte + 1).next_multiple_of(BLOCK as u64),
        };
        (file.to_owned(), range)
    }

    /// Whether this damage may be found by the read of a record, or a check, and not at the start: some of it is behind
    /// the header of a sealed segment, which a start knows from its footer.
    fn may_be_found_late(&self, places: &Places) -> bool {
        places.iter().any(|(file, range)| {
            *file != self.story.newest && range.end > SEGMENT_HEADER_BYTES as u64
        })
    }

    /// Opens the damaged store and judges.
    pub(super) fn judge(&mut self, what: &str, damaged: &Image, places: &Places) {
        if *damaged == self.story.image {
            return;
        }
        self.figures.mutations += 1;
        let disk = SimDisk::with_image(self.figures.mutations, damaged);
        let mut opening = Opening::start(
            &disk,
            &options(1, SHARD, 9),
            Rng::new(self.figures.mutations),
        );
        opening.executor.exhaust(&disk);
        let opened = opening.result().expect("the recovery ends");
        let start = match opened {
            Err(error) => {
                assert!(
                    disk.image() == *damaged,
                    "{what}: a refused start changed files: {error}"
                );
                self.judge_refusal(what, &error, places);
                self.figures.refused += 1;
                Start::Refused(error)
            }
            Ok((engine, recovered)) => {
                self.judge_opened(what, damaged, places, (&disk, opening, engine, &recovered))
            }
        };
        if self.figures.mutations.is_multiple_of(CHECKED_ONE_IN) {
            self.judge_check(what, damaged, &start, places);
            self.figures.checked += 1;
        }
    }

    fn judge_opened(
        &mut self,
        what: &str,
        damaged: &Image,
        places: &Places,
        (disk, opening, engine, recovered): (&SimDisk, Opening, Engine, &Recovered),
    ) -> Start {
        let mut model = self.story.model.clone();
        if recovered.last_version < model.last_version() {
            assert!(
                !self.story.sealed,
                "{what}: silent loss of acknowledged data: {recovered:?}"
            );
            model.release(self.story.before_last);
            match recovered.torn_tail {
                Some(_) => self.figures.last_frame_taken_for_torn += 1,
                None => self.figures.last_frame_erased += 1,
            }
        } else {
            self.figures.unharmed += 1;
        }
        let mut life = Life::start(disk, engine, opening.executor);
        let cut = model.recovered(recovered.last_version);
        cut.unwrap_or_else(|failure| panic!("{what}: silent damage: {failure}, {recovered:?}"));
        if self.may_be_found_late(places) {
            let records = Records::of(&self.story.image);
            let refused = records.judge_reads(what, &life, &model, damaged, places);
            if refused > 0 {
                self.figures.unharmed -= 1;
                self.figures.reads_refused += 1;
                return Start::ReadsRefused;
            }
        }
        life.audit(&mut model)
            .unwrap_or_else(|failure| panic!("{what}: silent damage: {failure}, {recovered:?}"));
        Start::Unharmed
    }

    fn judge_refusal(&self, what: &str, error: &StorageError, places: &Places) {
        match error {
            // Of a newest segment that is no more, the one before it knows.
            StorageError::Corrupt { what, .. }
                if what.contains("the segment behind it is missing")
                    && places.iter().any(|(file, _)| *file == self.story.newest) => {}
            StorageError::Corrupt { .. } => assert!(
                names(error, places),
                "{what}: the refusal names another place: {error}, not {places:?}"
            ),
            StorageError::Incompatible(_) => {}
            _ => panic!("{what}: refused for another reason: {error}"),
        }
    }

    /// A check of the damaged store agrees with its start, and changes nothing. What the start left to be found, the
    /// check finds.
    fn judge_check(&self, what: &str, damaged: &Image, start: &Start, places: &Places) {
        let disk = SimDisk::with_image(1, damaged);
        let checked = run(&disk, {
            let disk = disk.clone();
            async move { verify_alone(&disk, &options(1, SHARD, 9)).await }
        });
        assert!(disk.image() == *damaged, "{what}: a check changed files");
        match (checked, start) {
            (
                Ok(verified),
                Start::Refused(refusal @ StorageError::Corrupt { file, offset, .. }),
            ) => {
                let named = verified.damage.iter().any(|found| {
                    matches!(found, StorageError::Corrupt { file: at, offset: byte, .. } if (at, byte) == (file, offset))
                });
                assert!(named, "{what}: {refusal:?} is not in {verified:?}");
            }
            (Ok(verified), Start::ReadsRefused) => {
                let named = verified.damage.iter().any(|found| names(found, places));
                assert!(named, "{what}: a check does not find it: {verified:?}");
            }
            (Ok(verified), Start::Unharmed) => {
                let late = self.may_be_found_late(places);
                let right = |found: &StorageError| late && names(found, places);
                assert!(verified.damage.iter().all(right), "{what}: {verified:?}");
            }
            (Err(StorageError::Incompatible(_)), Start::Refused(StorageError::Incompatible(_))) => {
            }
            (checked, Start::Refused(refusal)) => {
                panic!("{what}: the start says {refusal:?}, the check {checked:?}")
            }
            (Err(error), _) => panic!("{what}: the start succeeds, the check says {error}"),
        }
    }

    /// One byte range of a file is replaced.
    pub(super) fn patch(&mut self, what: &str, file: &str, at: usize, bytes: &[u8]) {
        let mut damaged = self.story.image.clone();
        damaged.file_mut(file)[at..at + bytes.len()].copy_from_slice(bytes);
        let places = vec![
            self.around(file, at),
            self.around(file, at + bytes.len() - 1),
        ];
        self.judge(
            &format!("{what} {file} @{at} +{}", bytes.len()),
            &damaged,
            &places,
        );
    }
}

/// Whether an error says that one of `places` is corrupt.
fn names(error: &StorageError, places: &Places) -> bool {
    let StorageError::Corrupt { file, offset, .. } = error else {
        return false;
    };
    // Offset 0: the file as a whole contradicts its header.
    let right = |range: &Range<u64>| range.contains(offset) || range.is_empty() || *offset == 0;
    places
        .iter()
        .any(|(place, range)| place == file && right(range))
}

/// Every set that is in the files of an image, with the place of its record: key, version, file, bytes.
pub(super) struct Records<'a> {
    image: &'a Image,
    sets: Vec<(Vec<u8>, u64, String, Range<usize>)>,
}

impl<'a> Records<'a> {
    pub(super) fn of(image: &'a Image) -> Self {
        let mut sets = Vec::new();
        for (file, frames) in frames(image) {
            for frame in frames {
                let start = frame.start as usize;
                let bytes = &image.file(&file)[start..frame.end as usize];
                let header = FrameHeader::decode(bytes).expect("the walk found it");
                let read = read_frame(&header, bytes, |offset, record| {
                    if record.kind == RecordKind::Set {
                        let place = start + offset..start + offset + record.bytes();
                        sets.push((record.key.to_vec(), record.version, file.clone(), place));
                    }
                });
                read.expect("nothing is damaged yet");
            }
        }
        Self { image, sets }
    }

    /// Reads every key of an open store. The read of a key is refused, with the right place, when its record differs in
    /// `damaged`; if there are copies of it that do not, it may succeed. Every other read gives what the model says.
    /// Returns how many were refused.
    pub(super) fn judge_reads(
        &self,
        what: &str,
        life: &Life,
        model: &Model,
        damaged: &Image,
        places: &Places,
    ) -> usize {
        let mut refused = 0;
        let present = model.present();
        for key in model.keys() {
            let expected = present.iter().find(|(present, ..)| *present == key);
            let expected = expected.map(|(_, value, version)| (&**value, *version));
            let version = expected.map_or(0, |(_, version)| version);
            let copies = self
                .sets
                .iter()
                .filter(|(of, at, ..)| (of, *at) == (&key, version));
            let damaged = copies
                .map(|(_, _, file, place)| {
                    let now = damaged.names().any(|name| name == file).then_some(damaged);
                    now.and_then(|now| now.file(file).get(place.clone()))
                        != Some(&self.image.file(file)[place.clone()])
                })
                .collect::<Vec<bool>>();
            let store = Rc::clone(&life.store);
            let read = run(&life.disk, {
                let key = key.clone();
                async move {
                    match store.get(&key) {
                        Lookup::Absent => Ok(None),
                        Lookup::Cached(found) => Ok(Some(found)),
                        Lookup::OnDisk(on_disk) => store.read(on_disk).await.map(Some),
                    }
                }
            });
            match read {
                Ok(found) => {
                    let found = found.map(|found| (found.value.to_vec(), found.version));
                    let found = found.as_ref().map(|(value, at)| (value.as_slice(), *at));
                    assert!(found == expected, "{what}: silent damage of {key:?}");
                    let excused = expected.is_none() || damaged.iter().any(|damaged| !damaged);
                    assert!(excused, "{what}: damaged, and the read of {key:?} succeeds");
                }
                Err(error) => {
                    assert!(names(&error, places), "{what}: {error}, not {places:?}");
                    let is_damaged = damaged.iter().any(|damaged| *damaged);
                    assert!(is_damaged, "{what}: {key:?} is not damaged: {error}");
                    refused += 1;
                }
            }
        }
        refused
    }
}

/// Runs `sweep` over every story and prints what came of it.
pub(super) fn sweep(what: &str, sweep: impl Fn(&mut Sweep<'_>, &[(String, usize)])) {
    let mut figures = Figures::default();
    for (title, story) in stories() {
        println!("{what}: {title}");
        let frames = frames(&story.image);
        // Every block that holds anything, and one block behind the last of each file.
        let mut blocks = Vec::new();
        for file in story.image.names() {
            let bytes = story.image.file(file);
            let used = bytes.iter().rposition(|byte| *byte != 0).unwrap_or(0);
            let (end, last) = (used / BLOCK + 2, bytes.len() / BLOCK);
            blocks.extend((0..end.min(last)).map(|block| (file.to_owned(), block)));
        }
        sweep(
            &mut Sweep {
                story: &story,
                frames,
                figures: &mut figures,
            },
            &blocks,
        );
    }
    figures.print(what);
    assert!(figures.mutations > 0 && figures.refused > 0);
}

impl Figures {
    pub(super) fn print(&self, what: &str) {
        println!(
            "damage: {} mutations, silent 0 ({what}: {self:?})",
            self.mutations
        );
    }
}
