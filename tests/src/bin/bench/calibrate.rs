//! What tables can be made of, on this machine: beside a figure for the same on another one, it says what that one would show.

use anyhow::Context as _;
use aya::{
    Ebpf,
    maps::{Array, HashMap},
    programs::{SchedClassifier, TestRun as _, TestRunOptions},
};

use crate::report::{Report, interleave, median};

const ROUNDS: usize = 9;
const REPEAT: u32 = 400_000;
const FEW: u32 = 1 << 10;
const MANY: u32 = 1 << 20;

/// What is measured, its program, the one whose cost is taken off, and nanoseconds on the reference machine: two processors of an
/// Intel Xeon (Sapphire Rapids) under Linux 6.18.
const PRIMITIVES: [(&str, &str, Option<&str>, Option<f64>); 6] = [
    ("a test run of an empty program", "bench_nothing", None, Some(15.0)),
    ("a call of a function", "bench_call", Some("bench_random"), None),
    ("a hash map of 1,024 keys of 16 bytes", "bench_few", Some("bench_random"), Some(20.0)),
    ("a hash map of 1,048,576 keys of 16 bytes", "bench_many", Some("bench_random"), Some(461.0)),
    ("a random block of 64 MB", "bench_block", Some("bench_random"), Some(160.0)),
    ("four vectors of 10,240 rules, to the end", "bench_vectors", Some("bench_nothing"), Some(78.0)),
];

/// The programs, loaded.
pub(crate) struct Calibration(Ebpf);

impl Calibration {
    pub(crate) fn load() -> anyhow::Result<Self> {
        let mut ebpf = Ebpf::load(calico_ebpf_user::BENCH_CALIBRATE_OBJECT)?;
        for (map, keys) in [("BENCH_FEW", FEW), ("BENCH_MANY", MANY)] {
            let mut map = HashMap::<_, [u64; 2], u64>::try_from(ebpf.map_mut(map).context("no such map")?)?;
            for key in 0..keys {
                map.insert(&[u64::from(key), 0], &u64::from(key), 0)?;
            }
        }
        let mut vectors = Array::<_, [u64; 160]>::try_from(ebpf.map_mut("BENCH_VECTORS").context("no vectors")?)?;
        for field in 0..4 {
            // Of each four bits one field lacks one.
            vectors.set(field, &[!(0x1111_1111_1111_1111 << field); 160], 0)?;
        }
        for (_, program, _, _) in PRIMITIVES {
            let program: &mut SchedClassifier = ebpf.program_mut(program).context("no such program")?.try_into()?;
            program.load()?;
        }
        let program: &mut SchedClassifier = ebpf.program_mut("bench_random").context("no such program")?.try_into()?;
        program.load()?;
        Ok(Self(ebpf))
    }

    /// Measures all of them.
    pub(crate) fn run(&self, report: &mut Report) -> anyhow::Result<()> {
        let rows = interleave(
            ROUNDS,
            &mut PRIMITIVES.clone(),
            |primitive| primitive.0.to_owned(),
            |&mut (_, program, less, _)| Ok(self.cost(program)? - less.map_or(Ok(0.0), |less| self.cost(less))?),
        )?;
        for ((name, _, _, reference), (_, samples)) in PRIMITIVES.iter().zip(&rows) {
            let here = median(samples.clone());
            if let Some(reference) = reference {
                println!(
                    "{name}: {here:.0} ns, on the reference machine {reference:.0}: {:.2} times",
                    here / reference
                );
            }
        }
        report.section("what tables can be made of", "ns", rows);
        Ok(())
    }

    fn cost(&self, program: &str) -> anyhow::Result<f64> {
        let program: &SchedClassifier = self.0.program(program).context("no such program")?.try_into()?;
        let options = TestRunOptions { data_in: Some(&[0; 64]), repeat: REPEAT, ..TestRunOptions::default() };
        let result = program.test_run(options)?;
        anyhow::ensure!(result.return_value as i32 != -1, "a key is not there");
        Ok(result.duration.as_nanos() as f64)
    }
}
