//! A short run of what the fuzzer does for long (`fuzz/run`): the kept inputs, and what becomes of them by changes that are
//! the same in each run.

use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};

#[path = "../../fuzz/src/targets.rs"]
mod targets;

/// For how long inputs are changed.
const TIME: Duration = Duration::from_secs(3);
/// How many changed inputs there are at most: as many as an idle machine does in that time.
const RUNS: usize = 30_000;

/// A pseudo-random number (splitmix64).
fn next(state: &mut u64) -> usize {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as usize
}

/// One or a few changes: a byte, a piece gone, a piece twice, a piece of another input.
fn changed(inputs: &[Vec<u8>], state: &mut u64) -> Vec<u8> {
    const BYTES: &[u8] = b"[]{}:,-&*!\"'\n\t #|>%@()=\x00\xff";
    let mut bytes = inputs[next(state) % inputs.len()].clone();
    for _ in 0..1 + next(state) % 4 {
        let at = next(state) % (bytes.len() + 1);
        let end = (at + 1 + next(state) % 30).min(bytes.len());
        match next(state) % 5 {
            0 if at < bytes.len() => bytes[at] = next(state).to_le_bytes()[0],
            1 => drop(bytes.drain(at..end)),
            2 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            3 => {
                let other = &inputs[next(state) % inputs.len()];
                let from = next(state) % (other.len() + 1);
                let to = (from + next(state) % 100).min(other.len());
                bytes.splice(at..end, other[from..to].iter().copied());
            }
            _ => bytes.insert(at, BYTES[next(state) % BYTES.len()]),
        }
    }
    bytes
}

fn run(name: &str, target: fn(&[u8])) {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut paths: Vec<_> =
        fs::read_dir(corpus).expect("the corpus").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    let inputs: Vec<Vec<u8>> = paths.iter().map(|path| fs::read(path).expect("an input")).collect();
    assert!(inputs.len() >= 5, "{name} has {} inputs", inputs.len());
    inputs.iter().for_each(|input| target(input));
    let (start, mut state) = (Instant::now(), 1);
    for number in 0..RUNS {
        let input = changed(&inputs, &mut state);
        let took = || {
            let before = Instant::now();
            let result = std::panic::catch_unwind(|| target(&input));
            assert!(result.is_ok(), "{name}, input {number}: {:?}", String::from_utf8_lossy(&input));
            before.elapsed()
        };
        // A machine that stands still for a moment does not do so twice.
        let (slow, first) = (Duration::from_secs(2), took());
        assert!(first < slow || took() < slow, "{name}, input {number} took {first:?}");
        if start.elapsed() > TIME {
            break;
        }
    }
}

#[test]
fn reader() {
    run("reader", targets::reader);
}

#[test]
fn selector() {
    run("selector", targets::selector);
}

#[test]
fn compiler() {
    run("compiler", targets::compiler);
}
