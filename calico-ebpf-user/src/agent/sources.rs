//! The files, as the loop sees them.

use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::{self, Write as _},
    net::IpAddr,
    path::PathBuf,
    sync::Arc,
};

use anyhow::bail;
use ipnet::IpNet;

use super::{
    answered::answered,
    engine::{Accepted, LOGGED_ERRORS},
    nat_outgoing::nat_outgoing,
};
use crate::{
    observe::status::Problem,
    policy::{compile::Compiler, staged::Staged},
    resources::{
        Diagnostic, Loaded, Reader, Severity,
        model::{Node, ResourceSet},
    },
    routes::departure::{Departing, with_departing},
};

/// Where the configuration comes from.
pub(super) struct Sources {
    paths: Vec<PathBuf>,
    node: String,
    reader: Reader,
    compiler: Compiler,
}

/// What a reading led to.
pub(super) struct Read {
    /// Identity of the contents, for this build of the program.
    pub(super) content: u64,
    /// What they say; `None` if anything is wrong.
    pub(super) set: Option<ResourceSet>,
    /// What is wrong.
    pub(super) errors: Vec<Problem>,
    /// What is odd; see also [`Accepted::warning`].
    pub(super) warnings: Vec<Problem>,
}

impl Sources {
    /// These files and directories, for this node.
    #[must_use]
    pub(super) fn new(paths: &[PathBuf], node: &str) -> Self {
        Self { paths: paths.to_vec(), node: node.to_owned(), reader: Reader::default(), compiler: Compiler::default() }
    }

    /// The first reading. What is wrong is written to standard error as `validate` does.
    ///
    /// # Errors
    /// The files were refused.
    pub(super) fn first(&mut self) -> anyhow::Result<(Accepted, Vec<Problem>)> {
        let loaded = self.reader.load(&self.paths);
        let errors: Vec<_> = loaded.errors().collect();
        if !errors.is_empty() {
            let shown = errors.iter().take(LOGGED_ERRORS).map(|error| error.render() + "\n").collect::<String>();
            // Where standard error is gone there is nobody to tell.
            let _ = io::stderr().lock().write_all(shown.as_bytes());
            bail!("the files were refused ({} errors; `validate` lists them all): nothing was changed", errors.len());
        }
        let read = Self::judge(loaded);
        let Read { content, set: Some(set), mut warnings, .. } = read else {
            bail!("the files were refused: nothing was changed");
        };
        let accepted = self.accept(content, set, Departing::new());
        warnings.extend(accepted.warning.clone());
        Ok((accepted, warnings))
    }

    /// Reads them; files that did not change are not parsed again.
    pub(super) fn read(&mut self) -> Read {
        let loaded = self.reader.load(&self.paths);
        Self::judge(loaded)
    }

    /// What the files say for this node; what did not change since the last time is not compiled again.
    /// Who is `departing` is this node's still.
    pub(super) fn accept(&mut self, content: u64, mut set: ResourceSet, departing: Departing) -> Accepted {
        let workloads = set.workloads.clone();
        if !departing.is_empty() {
            set.workloads = with_departing(&departing, &workloads, &self.node).into();
        }
        let compiled = self.compiler.compile(&set, &self.node);
        let felix = set.felix_for(&self.node);
        let nat_outgoing = nat_outgoing(&set, &compiled, &felix);
        let answered = answered(&set, &compiled, &felix);
        set.workloads = workloads.clone();
        // All others need not be looked at where somebody is here.
        let unknown = if compiled.workloads.is_empty() { set.unknown_node(&self.node) } else { None };
        Accepted {
            content,
            compiled,
            felix,
            nat_outgoing,
            answered,
            workloads,
            warning: unknown.map(Problem::general),
            departing,
            nodes: nodes(&set),
            staged: Staged::new(set, &self.node).map(Arc::new),
        }
    }

    fn judge(loaded: Loaded) -> Read {
        let mut content = DefaultHasher::new();
        loaded.files.hash(&mut content);
        let problems = |severity| loaded.of(severity).map(Problem::from).collect::<Vec<_>>();
        let errors = problems(Severity::Error);
        let mut warnings = problems(Severity::Warning);
        warnings.extend(problems(Severity::Notice));
        let content = content.finish();
        let set = errors.is_empty().then_some(loaded.set);
        Read { content, set, errors, warnings }
    }
}

/// The addresses that routing daemons of nodes go by.
fn nodes(set: &ResourceSet) -> BTreeMap<String, Vec<IpAddr>> {
    let of_node = |node: &Node| node.ipv4.iter().chain(&node.ipv6).map(IpNet::addr).collect();
    set.node_resources.iter().map(|(name, node)| (name.clone(), of_node(node))).collect()
}

impl From<&Diagnostic> for Problem {
    fn from(diagnostic: &Diagnostic) -> Self {
        let Diagnostic { severity: _, path, line, column, resource, field, message, source_line: _ } = diagnostic;
        Self {
            path: path.clone(),
            line: *line,
            column: *column,
            resource: resource.clone(),
            field: field.clone(),
            message: message.clone(),
        }
    }
}
