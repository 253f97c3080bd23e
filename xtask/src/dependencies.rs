//! Holds the dependencies against `deny.toml`: licences, places they come from, wildcards.
//!
//! The file is cargo-deny's. What it says is enforced here, from `cargo metadata`, because building cargo-deny takes longer than
//! all the other checks together; only looking up known vulnerabilities needs it, and a network.

use std::{collections::BTreeSet, fs};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::{cargo, project};

/// The registry that is always known.
const CRATES_IO: &str = "registry+https://github.com/rust-lang/crates.io-index";

/// What `deny.toml` says. A setting that is not enforced here is an error: it would look enforced.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Rules {
    graph: Graph,
    licenses: Licenses,
    bans: Bans,
    sources: Sources,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Graph {
    /// The platforms whose dependencies count.
    targets: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Licenses {
    /// Licences, each perhaps `WITH` an exception.
    allow: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Bans {
    wildcards: Level,
    allow_wildcard_paths: bool,
    multiple_versions: Level,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct Sources {
    unknown_registry: Level,
    unknown_git: Level,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Level {
    Allow,
    Deny,
}

/// The part of `cargo metadata` that is looked at.
#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    dependencies: Vec<Dependency>,
}

#[derive(Debug, Deserialize)]
struct Dependency {
    name: String,
    req: String,
    path: Option<String>,
}

/// Looks at all dependencies of all crates here; returns how many there are.
///
/// # Errors
/// Something that `deny.toml` does not allow: all of it is listed.
pub fn check() -> anyhow::Result<usize> {
    let text = fs::read_to_string(project::root().join("deny.toml")).context("cannot read deny.toml")?;
    let rules = parse(&text)?;
    let mut command = cargo::pinned("metadata");
    command.args(["--format-version", "1", "--locked"]);
    for target in &rules.graph.targets {
        command.args(["--filter-platform", target]);
    }
    let metadata: Metadata = serde_json::from_str(&cargo::output(&mut command)?).context("cargo metadata")?;
    let wrong = judge(&rules, &metadata);
    ensure!(wrong.is_empty(), "deny.toml does not allow:\n{}", wrong.join("\n"));
    Ok(metadata.packages.len())
}

fn parse(text: &str) -> anyhow::Result<Rules> {
    let rules: Rules = toml::from_str(text).context("deny.toml")?;
    ensure!(
        rules.bans.multiple_versions == Level::Allow,
        "deny.toml: bans.multiple-versions is enforced by nobody here"
    );
    Ok(rules)
}

/// What is wrong, a line each.
fn judge(rules: &Rules, metadata: &Metadata) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let Package { id, name, version, license, source, dependencies } = package;
        match license.as_deref().map(|expression| allows(&rules.licenses.allow, expression)) {
            Some(Ok(true)) => {}
            Some(Ok(false)) => wrong.push(format!("{name} {version}: licence {}", license.as_deref().unwrap_or(""))),
            Some(Err(error)) => wrong.push(format!("{name} {version}: {error}")),
            None => wrong.push(format!("{name} {version}: it does not name its licence")),
        }
        let known = match source.as_deref() {
            None | Some(CRATES_IO) => true,
            Some(source) if source.starts_with("git+") => rules.sources.unknown_git == Level::Allow,
            Some(_) => rules.sources.unknown_registry == Level::Allow,
        };
        if !known {
            wrong.push(format!("{name} {version}: it comes from {}", source.as_deref().unwrap_or("")));
        }
        // crates.io takes no crate with wildcards: only our own can have them.
        if metadata.workspace_members.contains(id) && rules.bans.wildcards == Level::Deny {
            let ours = |dependency: &&Dependency| {
                dependency.req == "*" && !(dependency.path.is_some() && rules.bans.allow_wildcard_paths)
            };
            let any = dependencies.iter().filter(ours);
            wrong.extend(any.map(|dependency| format!("{name} {version}: any version of {}", dependency.name)));
        }
    }
    wrong.sort();
    wrong
}

/// Whether the licences allowed are enough for an SPDX expression (<https://spdx.github.io/spdx-spec>, annex D), or the older form
/// with a slash for `OR`.
fn allows(allowed: &BTreeSet<String>, expression: &str) -> anyhow::Result<bool> {
    let spaced = expression.replace('(', " ( ").replace(')', " ) ").replace('/', " OR ");
    let mut words = spaced.split_whitespace().peekable();
    let verdict = any_of(allowed, &mut words).with_context(|| format!("licence expression `{expression}`"))?;
    ensure!(words.peek().is_none(), "licence expression `{expression}` does not end where it should");
    Ok(verdict)
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(allowed: &BTreeSet<String>, words: &mut Words<'_>) -> anyhow::Result<bool> {
    let mut verdict = all_of(allowed, words)?;
    while words.next_if_eq(&"OR").is_some() {
        // Both sides are read, whatever the first says.
        verdict |= all_of(allowed, words)?;
    }
    Ok(verdict)
}

fn all_of(allowed: &BTreeSet<String>, words: &mut Words<'_>) -> anyhow::Result<bool> {
    let mut verdict = one(allowed, words)?;
    while words.next_if_eq(&"AND").is_some() {
        verdict &= one(allowed, words)?;
    }
    Ok(verdict)
}

fn one(allowed: &BTreeSet<String>, words: &mut Words<'_>) -> anyhow::Result<bool> {
    match words.next() {
        Some("(") => {
            let verdict = any_of(allowed, words)?;
            ensure!(words.next() == Some(")"), "a parenthesis is not closed");
            Ok(verdict)
        }
        None | Some(")" | "AND" | "OR" | "WITH") => bail!("a licence is missing"),
        Some(licence) if words.next_if_eq(&"WITH").is_some() => {
            let exception = words.next().context("an exception is missing")?;
            // Who may do without the exception may do more.
            Ok(allowed.contains(licence) || allowed.contains(&format!("{licence} WITH {exception}")))
        }
        Some(licence) => Ok(allowed.contains(licence)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed() -> BTreeSet<String> {
        ["MIT", "Apache-2.0", "GPL-2.0 WITH Linux-syscall-note"].map(str::to_owned).into()
    }

    #[test]
    fn expressions() {
        for (expression, verdict) in [
            ("MIT", true),
            ("GPL-3.0", false),
            ("GPL-3.0 OR MIT", true),
            ("GPL-3.0/MIT", true),
            ("GPL-3.0 AND MIT", false),
            ("MIT AND Apache-2.0 OR GPL-3.0", true),
            ("GPL-3.0 OR GPL-2.0 AND MIT", false),
            ("(GPL-3.0 OR MIT) AND (Apache-2.0 OR BSD-2-Clause)", true),
            ("(GPL-3.0 OR MIT) AND BSD-2-Clause", false),
            ("GPL-2.0 WITH Linux-syscall-note", true),
            ("GPL-2.0", false),
            ("Apache-2.0 WITH LLVM-exception", true),
        ] {
            assert_eq!(allows(&allowed(), expression).ok(), Some(verdict), "{expression}");
        }
        for nonsense in ["", "MIT OR", "(MIT", "MIT)", "MIT Apache-2.0", "MIT WITH"] {
            assert!(allows(&allowed(), nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn everything_wrong_is_found() {
        let rules = parse(&fs::read_to_string(project::root().join("deny.toml")).expect("deny.toml")).expect("rules");
        let package =
            |name: &str, license: Option<&str>, source: Option<&str>, req: &str, path: Option<&str>| Package {
                id: name.into(),
                name: name.into(),
                version: "1.0.0".into(),
                license: license.map(str::to_owned),
                source: source.map(str::to_owned),
                dependencies: vec![Dependency { name: "x".into(), req: req.into(), path: path.map(str::to_owned) }],
            };
        let metadata = Metadata {
            packages: vec![
                package("fine", Some("MIT"), Some(CRATES_IO), "*", None),
                package("own", Some("MIT"), None, "*", Some("../x")),
                package("viral", Some("AGPL-3.0"), Some(CRATES_IO), "1", None),
                package("silent", None, Some(CRATES_IO), "1", None),
                package("git", Some("MIT"), Some("git+https://example.org/x"), "1", None),
                package("elsewhere", Some("MIT"), Some("registry+https://example.org/index"), "1", None),
                package("loose", Some("MIT"), None, "*", None),
            ],
            workspace_members: ["own", "loose"].map(str::to_owned).into(),
        };
        let wrong = judge(&rules, &metadata);
        let names: Vec<_> = wrong.iter().filter_map(|line| line.split(' ').next()).collect();
        assert_eq!(names, ["elsewhere", "git", "loose", "silent", "viral"], "{wrong:?}");
    }

    #[test]
    fn a_setting_that_nobody_enforces_is_refused() {
        let text = fs::read_to_string(project::root().join("deny.toml")).expect("deny.toml");
        assert!(parse(&text).is_ok());
        assert!(parse(&text.replace("[bans]", "[bans]\nhighlight = \"all\"")).is_err());
        assert!(parse(&text.replace("multiple-versions = \"allow\"", "multiple-versions = \"deny\"")).is_err());
    }
}
