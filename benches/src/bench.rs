//! What all subjects share: the modules, where results go, and how progress is printed.

use std::fmt;
use std::io::{IsTerminal as _, Write as _, stderr};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use envoy_test::Lab;

use crate::plot::Chart;
use crate::report::Table;

/// A run of the benchmarks.
pub(crate) struct Bench {
    pub(crate) lab: Lab,
    /// Few rounds of few requests.
    pub(crate) is_quick: bool,
    /// Where charts go.
    pub(crate) out: PathBuf,
    pub(crate) tables: Vec<Table>,
    /// The subject at work.
    pub(crate) subject: &'static str,
    rounds: Option<usize>,
    noop: PathBuf,
    others: Vec<PathBuf>,
}

/// A module that is looked at.
#[derive(Clone, Debug)]
pub(crate) struct Contender {
    pub(crate) name: String,
    pub(crate) module: PathBuf,
    pub(crate) is_noop: bool,
}

impl Bench {
    pub(crate) fn new(
        lab: Lab,
        others: Vec<PathBuf>,
        out: PathBuf,
        is_quick: bool,
        rounds: Option<usize>,
    ) -> Result<Self> {
        // `make bench` builds it.
        let noop = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../target/wasm32-wasip1/release/noop.wasm"
        );
        let noop = PathBuf::from(noop)
            .canonicalize()
            .context("the module that does nothing is not built: run `make bench`")?;
        std::fs::create_dir_all(&out)
            .with_context(|| format!("cannot make the folder {}", out.display()))?;
        Ok(Self {
            lab,
            is_quick,
            out,
            tables: Vec::new(),
            subject: "",
            rounds,
            noop,
            others,
        })
    }

    /// The module that does nothing, the filter, and those named on the command line.
    pub(crate) fn modules(&self) -> Vec<Contender> {
        let contender = |name: &str, module: &PathBuf, is_noop| Contender {
            name: name.to_owned(),
            module: module.clone(),
            is_noop,
        };
        let mut modules = vec![
            contender("noop", &self.noop, true),
            contender("filter", &self.lab.module().to_owned(), false),
        ];
        let others = self.others.iter().zip(self.others());
        modules.extend(others.map(|(module, name)| contender(&name, module, false)));
        modules
    }

    /// The names of the modules named on the command line.
    pub(crate) fn others(&self) -> Vec<String> {
        let name = |module: &PathBuf| Some(module.file_stem()?.to_string_lossy().into_owned());
        self.others.iter().filter_map(name).collect()
    }

    /// How many rounds each start has, `usual` of them unless the user wants another number.
    pub(crate) fn rounds(&self, usual: usize) -> usize {
        self.rounds.unwrap_or(usual)
    }

    /// `usual`, or a tenth of it in a quick run.
    pub(crate) fn scaled(&self, usual: usize) -> usize {
        if self.is_quick {
            usual.div_ceil(10)
        } else {
            usual
        }
    }

    /// Tells those who wait.
    pub(crate) fn progress(&self, step: fmt::Arguments<'_>) {
        let mut stderr = stderr();
        let subject = self.subject;
        let printed = if stderr.is_terminal() {
            // One line, written anew.
            write!(stderr, "\r\x1b[K{subject}: {step}").and_then(|()| stderr.flush())
        } else {
            writeln!(stderr, "{subject}: {step}")
        };
        // Nobody listens.
        printed.unwrap_or_default();
    }

    pub(crate) fn add_table(&mut self, table: Table) {
        self.tables.push(table);
    }

    pub(crate) fn add_chart(&self, chart: &Chart) -> Result<()> {
        let path = self.out.join(format!("{}.svg", self.subject));
        chart.write(&path)
    }
}

/// Ends the line of [`Bench::progress`].
pub(crate) fn end_progress() {
    if stderr().is_terminal() {
        eprint!("\r\x1b[K");
    }
}
