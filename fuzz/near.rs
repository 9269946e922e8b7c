//! Inputs near those of the corpus, for the tests of whoever reads them: a fuzzer that sees nothing of the
//! program, and that any compiler builds.

use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};

use super::CORPUS;

/// Inputs for each reader, the same ones each time. Where PROPTEST_CASES says how many, they are others.
const CASES: u32 = 20_000;
/// Most bytes that are taken away or repeated at once.
const PIECE: usize = 40;

/// What readers look for, and numbers at which they count wrong.
const WORDS: [&[u8]; 16] = [
    b"\"",
    b"\\",
    b"{",
    b"[",
    b",",
    b":",
    b"\r\n",
    b"--",
    b"%00",
    b"\0",
    b"\xff",
    b"\xf0\x9f\x90\x89",
    b"-1",
    b"1e999",
    b"18446744073709551616",
    b"PK\x03\x04",
];

/// One thing that is done to an input. Places are shares of its length, whatever that is by then.
#[derive(Debug, Clone)]
enum Edit {
    Set(Index, u8),
    Flip(Index, u8),
    Insert(Index, &'static [u8]),
    Remove(Index, usize),
    Repeat(Index, usize, u8),
    /// From there on it is another input.
    Splice(Index, Vec<u8>, Index),
}

impl Edit {
    fn apply(self, data: &mut Vec<u8>) {
        let place = |of: &[u8], at: Index| at.index(of.len() + 1);
        match self {
            Self::Set(at, byte) => {
                let at = place(data, at);
                data.splice(at..(at + 1).min(data.len()), [byte]);
            }
            Self::Flip(at, bit) => {
                if !data.is_empty() {
                    let at = at.index(data.len());
                    data[at] ^= 1 << bit;
                }
            }
            Self::Insert(at, word) => {
                let at = place(data, at);
                data.splice(at..at, word.iter().copied());
            }
            Self::Remove(at, length) => {
                let at = place(data, at);
                data.drain(at..(at + length).min(data.len()));
            }
            Self::Repeat(at, length, times) => {
                let at = place(data, at);
                let piece = data[at..(at + length).min(data.len())].repeat(times.into());
                data.splice(at..at, piece);
            }
            Self::Splice(at, other, from) => {
                data.truncate(place(data, at));
                data.extend(&other[place(&other, from)..]);
            }
        }
    }
}

fn near(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let at = any::<Index>;
    let edit = prop_oneof![
        (at(), any::<u8>()).prop_map(|(at, byte)| Edit::Set(at, byte)),
        (at(), 0..8_u8).prop_map(|(at, bit)| Edit::Flip(at, bit)),
        (at(), select(&WORDS[..])).prop_map(|(at, word)| Edit::Insert(at, word)),
        (at(), 1..PIECE).prop_map(|(at, length)| Edit::Remove(at, length)),
        (at(), 1..PIECE, 1..20_u8).prop_map(|(at, length, times)| Edit::Repeat(at, length, times)),
        (at(), select(corpus.clone()), at()).prop_map(|(at, other, from)| Edit::Splice(at, other, from)),
    ];
    (select(corpus), vec(edit, 1..6)).prop_map(|(mut data, edits)| {
        for edit in edits {
            edit.apply(&mut data);
        }
        data
    })
}

/// Every input of a reader's directory.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join(CORPUS).join(name);
    let files = std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{name}: {error}"));
    let inputs: Vec<_> = files.map(|file| std::fs::read(file.unwrap().path()).unwrap()).collect();
    assert!(!inputs.is_empty(), "the corpus of {name} is empty");
    inputs
}

/// Gives a reader the corpus, and then what is near it. A panic is made as small as it can be, and shown.
pub fn feed(name: &str, reader: impl Fn(&[u8])) {
    let corpus = corpus(name);
    corpus.iter().for_each(|data| reader(data));
    let config = Config { failure_persistence: None, ..Config::default() };
    let mut runner = if std::env::var_os("PROPTEST_CASES").is_some() {
        TestRunner::new(config)
    } else {
        let always = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        TestRunner::new_with_rng(Config { cases: CASES, ..config }, always)
    };
    let fed = runner.run(&near(corpus), |data| {
        reader(&data);
        Ok(())
    });
    fed.unwrap_or_else(|error| panic!("{name}: {error}"));
}
