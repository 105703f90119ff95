//! What the client accepts of a backup, and what it does not.

use std::cell::RefCell;
use std::rc::Rc;

use super::fake::Part;
use super::{BackupPart, ClientError, Setup, setup};

/// Receives a copy of these parts; what came of it as text, and how it ended.
fn received(parts: Vec<Part>) -> (Vec<String>, Result<u64, ClientError>) {
    let Setup {
        client,
        fake,
        mut pool,
        ..
    } = setup();
    *fake.copy.borrow_mut() = parts;
    let seen = Rc::new(RefCell::new(Vec::new()));
    let into = Rc::clone(&seen);
    let on_part = move |part: BackupPart<'_>| {
        let shown = match part {
            BackupPart::Begin(outline) => format!("begin {} {}", outline.files, outline.bytes),
            BackupPart::File {
                name,
                bytes,
                full_bytes,
            } => format!("file {name} {bytes} {full_bytes}"),
            BackupPart::Bytes(b"refuse") => return Err("refused".into()),
            BackupPart::Bytes(bytes) => format!("bytes {}", bytes.len()),
        };
        into.borrow_mut().push(shown);
        Ok(())
    };
    let ended = pool.run_until(client.backup(on_part));
    (seen.take(), ended.map(|outline| outline.bytes))
}

#[test]
fn parts_come_in_order_and_whole() {
    let (seen, ended) = received(vec![
        Part::Begin(2, 8),
        Part::File("segment-0.log", 5, 9),
        Part::Chunk(b"abc"),
        Part::Chunk(b"de"),
        Part::File("manifest", 3, 3),
        Part::Chunk(b"man"),
    ]);
    let expected = [
        "begin 2 8",
        "file segment-0.log 5 9",
        "bytes 3",
        "bytes 2",
        "file manifest 3 3",
        "bytes 3",
    ];
    assert_eq!(seen, expected);
    assert_eq!(ended.unwrap(), 8);
}

#[test]
fn names_that_are_paths_and_parts_out_of_order_are_refused() {
    let begin = Part::Begin(1, 5);
    for (parts, said) in [
        (vec![begin.clone(), Part::File("../x", 5, 5)], "\"../x\""),
        (vec![begin.clone(), Part::File("/x", 5, 5)], "\"/x\""),
        (vec![begin.clone(), Part::File("..", 5, 5)], "\"..\""),
        (vec![begin.clone(), Part::File(".x", 5, 5)], "\".x\""),
        (vec![begin.clone(), Part::File("", 5, 5)], "\"\""),
        (vec![begin.clone(), Part::File("x\ny", 5, 5)], "\"x\\ny\""),
        (vec![begin.clone(), Part::File("x", 5, 4)], "full length"),
        (vec![begin.clone(), begin.clone()], "twice"),
        (vec![Part::File("x", 5, 5)], "before"),
        (vec![begin.clone(), Part::Chunk(b"abc")], "more bytes"),
        (
            vec![begin.clone(), Part::File("x", 2, 5), Part::Chunk(b"abc")],
            "more bytes",
        ),
        (
            vec![begin.clone(), Part::File("x", 5, 5), Part::File("y", 5, 5)],
            "before",
        ),
        (
            vec![begin.clone(), Part::File("x", 6, 6), Part::Chunk(b"refuse")],
            "refused",
        ),
    ] {
        let (_, ended) = received(parts);
        let Err(ClientError::Stopped(reason)) = ended else {
            panic!("{said}: {ended:?}")
        };
        assert!(reason.contains(said), "{reason}: {said}");
    }
}

#[test]
fn a_copy_that_is_not_whole_is_no_copy() {
    for parts in [
        vec![],
        vec![Part::Begin(1, 5)],
        vec![
            Part::Begin(1, 5),
            Part::File("x", 5, 5),
            Part::Chunk(b"abc"),
        ],
        vec![
            Part::Begin(2, 5),
            Part::File("x", 5, 5),
            Part::Chunk(b"abcde"),
        ],
    ] {
        let (_, ended) = received(parts);
        assert!(matches!(ended, Err(ClientError::Protocol(_))), "{ended:?}");
    }
}
