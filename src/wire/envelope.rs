//! The envelopes of `rpc.capnp` as words: a `Return` with results, and a `Call` on an import. They are always the same
//! but for a few fields, so they are not built.

use capnp::traits::HasStructSize;
use capnp_rpc::rpc_capnp::{call, message, message_target, payload, return_};

use super::words::{Shape, WORD_BYTES, append, struct_pointer};

/// Words before the results: the pointer to the message, `Message` (1 + 1), `Return` (2 + 1), `Payload` (0 + 2).
pub(super) const RETURN_WORDS: usize = 8;

/// Words before the parameters of a call on an import: the pointer to the message, `Message` (1 + 1), `Call` (3 + 3),
/// `MessageTarget` (1 + 1), `Payload` (0 + 2).
const CALL_WORDS: usize = 13;

/// The same for a call on a promised answer with one operation.
pub(super) const CALL_WORDS_MAX: usize = CALL_WORDS + 6;

/// Words of a `Finish`.
pub(super) const FINISH_WORDS: usize = 4;

const fn has_size<T: HasStructSize>(data_words: u16, pointers: u16) -> bool {
    T::STRUCT_SIZE.data == data_words && T::STRUCT_SIZE.pointers == pointers
}

const _: () = assert!(has_size::<message::Builder<'static>>(1, 1));
const _: () = assert!(has_size::<return_::Builder<'static>>(2, 1));
const _: () = assert!(has_size::<call::Builder<'static>>(3, 3));
const _: () = assert!(has_size::<message_target::Builder<'static>>(1, 1));
const _: () = assert!(has_size::<payload::Builder<'static>>(0, 2));

/// Numbers in the union of `Message`.
const MESSAGE_CALL: u64 = 2;
const MESSAGE_RETURN: u64 = 3;

/// Bytes of a `Return` with results.
pub(super) fn return_bytes(results: Shape) -> usize {
    (RETURN_WORDS + results.words) * WORD_BYTES
}

/// Everything of a `Return` before its results, which do without a `Finish`.
pub(super) fn results(answer_id: u32, results: Shape, to: &mut Vec<u8>) {
    /// Number of `results` in the union of `Return`.
    const RESULTS: u64 = 0;
    /// `releaseParamCaps` is true unless this bit is set.
    const KEEP_PARAM_CAPS: u64 = 1 << 32;
    const NO_FINISH_NEEDED: u64 = 1 << 33;
    append(
        to,
        &[
            struct_pointer(0, 1, 1),
            MESSAGE_RETURN,
            struct_pointer(0, 2, 1),
            u64::from(answer_id) | KEEP_PARAM_CAPS | NO_FINISH_NEEDED | RESULTS << 48,
            0,
            struct_pointer(0, 0, 2),
            // The table of capabilities, which is empty, comes between.
            struct_pointer(1, results.data_words, results.pointers),
            0,
        ],
    );
}

/// A call on an import.
pub(super) struct Call {
    pub(super) question: u32,
    pub(super) interface: u64,
    pub(super) method: u16,
    pub(super) import: u32,
}

/// Bytes of a `Call` on an import.
pub(super) fn call_bytes(parameters: Shape) -> usize {
    (CALL_WORDS + parameters.words) * WORD_BYTES
}

/// Everything of a `Call` before its parameters.
pub(super) fn call(call: &Call, parameters: Shape, to: &mut Vec<u8>) {
    /// Number of `caller` in `sendResultsTo`, and of `importedCap` in `MessageTarget`.
    const TO_CALLER: u64 = 0;
    const IMPORTED_CAP: u64 = 0;
    append(
        to,
        &[
            struct_pointer(0, 1, 1),
            MESSAGE_CALL,
            struct_pointer(0, 3, 3),
            u64::from(call.question) | u64::from(call.method) << 32 | TO_CALLER << 48,
            call.interface,
            0,
            // The target behind the other two pointers, the parameters behind the target, and nobody else for the
            // results.
            struct_pointer(2, 1, 1),
            struct_pointer(3, 0, 2),
            0,
            u64::from(call.import) | IMPORTED_CAP << 32,
            0,
            // The table of capabilities, which is empty, comes between.
            struct_pointer(1, parameters.data_words, parameters.pointers),
            0,
        ],
    );
}

#[cfg(test)]
mod tests {
    use capnp::any_pointer;
    use capnp::message::ReaderOptions;

    use super::*;

    const ONE_WORD: Shape = Shape {
        data_words: 1,
        pointers: 0,
        words: 1,
    };

    /// The message of `words` with one word of content, framed.
    fn framed(fill: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut words = Vec::new();
        fill(&mut words);
        append(&mut words, &[0x0123_4567_89ab_cdef]);
        let mut bytes = vec![0; 4];
        bytes.extend(
            u32::try_from(words.len() / WORD_BYTES)
                .unwrap()
                .to_le_bytes(),
        );
        bytes.extend(words);
        bytes
    }

    fn content_of(content: any_pointer::Reader<'_>) -> u64 {
        let mut copy = capnp::message::Builder::new_default();
        copy.set_root_canonical::<any_pointer::Owned>(content)
            .unwrap();
        let segment = copy.get_segments_for_output()[0].to_vec();
        u64::from_le_bytes(segment[8..].try_into().unwrap())
    }

    #[test]
    fn a_return_reads_as_what_it_is() {
        let bytes = framed(|to| results(0x89ab_cdef, ONE_WORD, to));
        assert_eq!(bytes.len(), 8 + return_bytes(ONE_WORD));
        let segments = capnp::serialize::read_message(&bytes[..], ReaderOptions::new()).unwrap();
        let root: message::Reader<'_> = segments.get_root().unwrap();
        let Ok(message::Return(Ok(answer))) = root.which() else {
            panic!("no return")
        };
        assert_eq!(answer.get_answer_id(), 0x89ab_cdef);
        assert!(answer.get_no_finish_needed() && !answer.get_release_param_caps());
        let Ok(return_::Results(Ok(payload))) = answer.which() else {
            panic!("no results")
        };
        assert!(payload.get_cap_table().unwrap().is_empty());
        assert_eq!(content_of(payload.get_content()), 0x0123_4567_89ab_cdef);
    }

    #[test]
    fn a_call_reads_as_what_it_is() {
        let made = Call {
            question: 0x4000_0001,
            interface: 0xfedc_ba98_7654_3210,
            method: 0x1234,
            import: 0x5678_9abc,
        };
        let bytes = framed(|to| call(&made, ONE_WORD, to));
        assert_eq!(bytes.len(), 8 + call_bytes(ONE_WORD));
        let segments = capnp::serialize::read_message(&bytes[..], ReaderOptions::new()).unwrap();
        let root: message::Reader<'_> = segments.get_root().unwrap();
        let Ok(message::Call(Ok(read))) = root.which() else {
            panic!("no call")
        };
        assert_eq!(
            (
                read.get_question_id(),
                read.get_interface_id(),
                read.get_method_id()
            ),
            (made.question, made.interface, made.method)
        );
        assert!(matches!(
            read.get_send_results_to().which(),
            Ok(call::send_results_to::Caller(()))
        ));
        assert!(matches!(
            read.get_target().unwrap().which(),
            Ok(message_target::ImportedCap(0x5678_9abc))
        ));
        let payload = read.get_params().unwrap();
        assert!(payload.get_cap_table().unwrap().is_empty());
        assert_eq!(content_of(payload.get_content()), 0x0123_4567_89ab_cdef);
    }
}
