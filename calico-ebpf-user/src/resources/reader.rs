//! Loading a set of files; what did not change is not parsed again.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    decode::{Decoder, FieldPath},
    diagnostic::{Diagnostic, Severity},
    files::{self, Content, Raw, Stamp},
    kinds,
    model::ResourceSet,
    parsed::Parsed,
    relations::{self, Claims, Summary},
    remark::{self, Remark},
    source::{Position, SourceText},
    yaml,
};

/// How many findings across files are kept.
const MAX_FOUND: usize = 1_000;
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What the files say, and what is wrong with them.
#[derive(Clone, Debug, Default)]
pub struct Loaded {
    /// The resources. Not to be used if there are errors: then parts of it are missing.
    pub set: ResourceSet,
    /// Findings, in the order of the files and of the lines in them.
    pub diagnostics: Vec<Diagnostic>,
    /// The files that were read, in order; equal stamps mean equal contents.
    pub files: Vec<FileStamp>,
}

/// A file as it was when it was read.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct FileStamp {
    /// Its path, as given or found in a directory that was given.
    pub path: PathBuf,
    /// Length in bytes.
    pub length: u64,
    /// A hash of the content, for comparison by this build of the program.
    pub hash: u64,
}

impl Loaded {
    /// Whether the set is refused.
    #[must_use]
    pub fn has_errors(&self) -> bool {
        self.errors().next().is_some()
    }

    /// The errors.
    pub fn errors(&self) -> impl Iterator<Item = &Diagnostic> {
        self.of(Severity::Error)
    }

    /// The warnings.
    pub fn warnings(&self) -> impl Iterator<Item = &Diagnostic> {
        self.of(Severity::Warning)
    }

    /// Puts the findings in the order of the files and of the lines in them; those about no file that was read come first.
    fn sort(&mut self) {
        if self.diagnostics.len() < 2 {
            return;
        }
        let order: HashMap<_, usize> =
            self.files.iter().enumerate().map(|(i, file)| (file.path.to_string_lossy(), i + 1)).collect();
        self.diagnostics.sort_by_key(|d| (order.get(d.path.as_str()).copied().unwrap_or(0), d.line, d.column));
    }

    /// The findings of one severity.
    pub fn of(&self, severity: Severity) -> impl Iterator<Item = &Diagnostic> {
        self.diagnostics.iter().filter(move |diagnostic| diagnostic.severity == severity)
    }
}

/// Loads sets of files again and again: keeps what it parsed, and parses only what changed.
#[derive(Debug, Default)]
pub struct Reader {
    files: HashMap<PathBuf, Arc<ParsedFile>>,
    /// Of `files`.
    claims: Claims,
    /// Documents that were parsed so far.
    #[cfg(test)]
    parsed: usize,
}

/// A file that was parsed.
#[derive(Debug)]
pub(super) struct ParsedFile {
    pub(super) source: SourceText,
    pub(super) resources: Vec<Parsed>,
    pub(super) summary: Summary,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// How many documents it has, broken ones included.
    documents: usize,
    /// How many values are in them, or were: at least as many as are.
    nodes: usize,
    /// How many of them were parsed for it.
    #[cfg_attr(not(test), expect(dead_code, reason = "tests count the work"))]
    parsed: usize,
    /// Its length and hash.
    identity: FileStamp,
    /// If the file still has this stamp, it is still the same.
    stamp: Option<Stamp>,
    /// Whether `source` holds what was in the file.
    exact: bool,
}

impl Reader {
    /// Reads the files of these paths and checks them, each in itself and all together.
    pub fn load(&mut self, paths: &[PathBuf]) -> Loaded {
        let mut diagnostics = Vec::new();
        let mut parsed = Vec::new();
        // Of each path; absent while no file of its own was seen: all of them may have been read by way of another path.
        let mut is_empty: Vec<Option<bool>> = vec![None; paths.len()];
        let mut kept = HashMap::new();
        let known = |path: &Path, stamp: &Stamp| self.files.get(path).is_some_and(|f| f.stamp.as_ref() == Some(stamp));
        for Raw { root, path, content } in files::read(paths, known) {
            match content {
                Ok(content) => {
                    let file = match content {
                        // What is known is there.
                        Content::Known => match self.files.get(&path) {
                            Some(file) => Arc::clone(file),
                            None => continue,
                        },
                        Content::Bytes { bytes, stamp } => self.parse(&path, bytes, stamp),
                    };
                    is_empty[root] = Some(is_empty[root].unwrap_or(true) && file.documents == 0);
                    kept.insert(path, Arc::clone(&file));
                    parsed.push(file);
                }
                Err(error) => {
                    is_empty[root] = Some(false);
                    diagnostics.push(error);
                }
            }
        }
        self.keep(kept);
        for (path, _) in paths.iter().zip(&is_empty).filter(|(_, empty)| **empty == Some(true)) {
            diagnostics.push(files::file_error(
                path,
                "no document in it: an empty set has to be written down, as \"{apiVersion: v1, kind: List, items: []}\"",
            ));
        }
        together(&parsed, &self.claims, diagnostics)
    }

    /// These are the files now.
    fn keep(&mut self, files: HashMap<PathBuf, Arc<ParsedFile>>) {
        let before = std::mem::replace(&mut self.files, files);
        let is_in = |files: &HashMap<PathBuf, Arc<ParsedFile>>, path: &Path, file: &Arc<ParsedFile>| {
            files.get(path).is_some_and(|same| Arc::ptr_eq(same, file))
        };
        for (_, gone) in before.iter().filter(|(path, file)| !is_in(&self.files, path, file)) {
            self.claims.withdraw(&gone.summary);
        }
        for (_, come) in self.files.iter().filter(|(path, file)| !is_in(&before, path, file)) {
            self.claims.make(&come.summary);
        }
    }

    /// Adds warnings about what this reader loaded last. Files with any are parsed once more, to say where.
    pub fn add(&self, loaded: &mut Loaded, remarks: &[Remark]) {
        for (path, file) in &self.files {
            let of_file: Vec<_> = remarks.iter().filter(|remark| *remark.origin.path == **path).collect();
            if !of_file.is_empty() {
                loaded.diagnostics.extend(remark::findings(&file.source, &of_file));
            }
        }
        loaded.sort();
    }

    fn parse(&mut self, path: &Path, content: Vec<u8>, stamp: Option<Stamp>) -> Arc<ParsedFile> {
        let bytes = content.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&content);
        if let Some(known) = self.files.get_mut(path)
            && known.exact
            && known.source.text.as_bytes() == bytes
        {
            // Nobody else has it: what is made of a file's resources does not keep the file.
            if let Some(known) = Arc::get_mut(known) {
                known.stamp = stamp;
            }
            return Arc::clone(known);
        }
        let file = parse(path, content, self.files.get(path).map(|file| &**file));
        #[cfg(test)]
        {
            self.parsed += file.parsed;
        }
        Arc::new(ParsedFile { stamp, ..file })
    }
}

/// Reads the files of these paths and checks them. See [`Reader::load`].
#[must_use]
pub fn load(paths: &[PathBuf]) -> Loaded {
    Reader::default().load(paths)
}

/// Checks a text as if it were in a file of this name, the only one.
#[must_use]
pub fn load_content(path: &Path, content: Vec<u8>) -> Loaded {
    let file = parse(path, content, None);
    let mut claims = Claims::default();
    claims.make(&file.summary);
    together(&[Arc::new(file)], &claims, Vec::new())
}

/// What the files say together. `diagnostics`: of what could not be read.
fn together(parsed: &[Arc<ParsedFile>], claims: &Claims, mut diagnostics: Vec<Diagnostic>) -> Loaded {
    diagnostics.extend(parsed.iter().flat_map(|file| file.diagnostics.iter().cloned()));
    let so_far_good = diagnostics.iter().all(|d| d.severity != Severity::Error);
    let (set, mut found) = relations::check(parsed, claims, so_far_good);
    if found.len() > MAX_FOUND {
        found.sort_by_key(|finding| finding.severity);
        found.truncate(MAX_FOUND);
        found[MAX_FOUND - 1].message.push_str(" (and more like this in all files)");
    }
    diagnostics.extend(found);
    let files = parsed.iter().map(|file| file.identity.clone()).collect();
    let mut loaded = Loaded { set, diagnostics, files };
    loaded.sort();
    loaded
}

fn identity(path: &Path, content: &[u8]) -> FileStamp {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    FileStamp { path: path.to_owned(), length: content.len() as u64, hash: hasher.finish() }
}

/// `before`: the file as it was the last time. Of its resources those that still say the same stay the same ones.
fn parse(path: &Path, mut content: Vec<u8>, before: Option<&ParsedFile>) -> ParsedFile {
    let identity = identity(path, &content);
    if content.starts_with(BYTE_ORDER_MARK) {
        content.drain(..BYTE_ORDER_MARK.len());
    }
    let path: Arc<Path> = before.map_or_else(|| Arc::from(path), |before| Arc::clone(&before.source.path));
    let text = match String::from_utf8(content) {
        Ok(text) => text,
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let is_utf16 = matches!(error.as_bytes(), [0xff, 0xfe, ..] | [0xfe, 0xff, ..]);
            let message = if is_utf16 {
                "the file is UTF-16 or UTF-32: save it as UTF-8"
            } else {
                "bytes that are not UTF-8: save the file as UTF-8"
            };
            return broken(path, identity, &String::from_utf8_lossy(error.as_bytes()), valid, message);
        }
    };
    // What YAML does not allow. A zero byte comes from UTF-16, or from a file system after a power failure.
    let forbidden =
        |c: char| (c.is_ascii_control() && !matches!(c, '\t' | '\n' | '\r')) || matches!(c, '\u{fffe}' | '\u{ffff}');
    if let Some(offset) = text.find(forbidden) {
        let message = if text[offset..].starts_with('\0') {
            "a zero byte: this is no text, or UTF-16 (save it as UTF-8)"
        } else {
            "a control character"
        };
        return broken(path, identity, &text, offset, message);
    }
    let source = SourceText::new(path, text);
    let Decoded { mut resources, documents, nodes, parsed, diagnostics } =
        before.and_then(|before| decode_changed(&source, before)).unwrap_or_else(|| decode(&source));
    for (parsed, before) in resources.iter_mut().zip(before.iter().flat_map(|before| &before.resources)) {
        parsed.stay(before);
    }
    let summary = Summary::of(&resources);
    ParsedFile { source, resources, summary, diagnostics, documents, nodes, parsed, identity, stamp: None, exact: true }
}

/// What a text says.
#[derive(Default)]
struct Decoded {
    resources: Vec<Parsed>,
    documents: usize,
    /// How many values are in them, or were: at least as many as are.
    nodes: usize,
    /// How many of the documents were parsed for it.
    parsed: usize,
    diagnostics: Vec<Diagnostic>,
}

fn decode(source: &SourceText) -> Decoded {
    decode_part(source, 0, &source.text)
}

/// The same, but of documents that stand where they stood before, what they said before. Only where nothing is wrong with
/// the file, then and now.
fn decode_changed(source: &SourceText, before: &ParsedFile) -> Option<Decoded> {
    if !before.diagnostics.is_empty() || !before.exact {
        return None;
    }
    // Values of documents that are gone go on counting: where that makes too many, all are counted anew.
    let mut all = Decoded { nodes: before.nodes, ..Decoded::default() };
    let (mut old, mut old_resources) =
        (yaml::parts(&before.source.text)?.into_iter().peekable(), &before.resources[..]);
    let parts = yaml::parts(&source.text)?;
    if parts.len() > yaml::MAX_DOCUMENTS {
        return None;
    }
    for (lines, text) in parts {
        while old.next_if(|old| old.0 < lines).is_some() {}
        if old.peek() != Some(&(lines, text)) {
            let new = decode_part(source, lines, text);
            if !new.diagnostics.is_empty() {
                return None;
            }
            all.resources.extend(new.resources);
            all.documents += new.documents;
            all.nodes += new.nodes;
            all.parsed += new.parsed;
            if all.nodes > yaml::MAX_NODES_OF_FILE {
                return None;
            }
            continue;
        }
        let first = old_resources.partition_point(|resource| resource.identity.name_at.line <= lines);
        let end = lines.saturating_add(u32::try_from(text.lines().count()).ok()?);
        let last = old_resources.partition_point(|resource| resource.identity.name_at.line <= end);
        all.resources.extend_from_slice(&old_resources[first..last]);
        old_resources = &old_resources[last..];
        all.documents += usize::from(last > first);
    }
    Some(all).filter(|all| all.documents != 0)
}

/// Of a part of the source, before which there are so many lines.
fn decode_part(source: &SourceText, lines: u32, text: &str) -> Decoded {
    let mut decoder = Decoder::new(source);
    let mut decoded = Decoded::default();
    let nodes = yaml::documents_from(lines, text, |document| {
        decoded.documents += 1;
        match document {
            Ok(node) => kinds::document(&mut decoder, &node, &mut decoded.resources),
            Err(error) => {
                decoder.resource = None;
                decoder.error_at(error.at, 1, &FieldPath::ROOT, error.message);
            }
        }
        !decoder.is_full()
    });
    Decoded { nodes, parsed: decoded.documents, diagnostics: decoder.finish(), ..decoded }
}

/// A file that is no text. `offset`: in bytes, where that shows.
fn broken(path: Arc<Path>, identity: FileStamp, text: &str, offset: usize, message: &str) -> ParsedFile {
    let before = text.get(..offset).unwrap_or_default();
    let line_start = before.rfind('\n').map_or(0, |i| i + 1);
    let at = Position {
        line: u32::try_from(before.matches('\n').count() + 1).unwrap_or(u32::MAX),
        column: u32::try_from(before[line_start..].chars().count() + 1).unwrap_or(u32::MAX),
    };
    let source = SourceText::new(path, text.to_owned());
    let diagnostic = source.diagnostic(Severity::Error, at, 1, None, None, message);
    ParsedFile {
        source,
        resources: Vec::new(),
        summary: Summary::default(),
        diagnostics: vec![diagnostic],
        documents: 1,
        nodes: 0,
        parsed: 1,
        identity,
        stamp: None,
        exact: false,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::*;

    fn network_set(number: usize, label: usize) -> String {
        format!(
            "apiVersion: projectcalico.org/v3\nkind: GlobalNetworkSet\nmetadata:\n  name: s{number}\n  labels: {{a: l{label}}}\n\
             spec: {{nets: [10.0.{number}.0/24]}}\n"
        )
    }

    fn load(reader: &mut Reader, path: &Path, text: &str) -> Loaded {
        fs::write(path, text).expect("a file");
        reader.load(&[path.to_owned()])
    }

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("calico-ebpf-reader-{}-{name}.yaml", std::process::id()))
    }

    #[test]
    fn only_the_document_that_changed_is_parsed() {
        let path = scratch("one");
        let text = |changed| {
            let sets = (0..50).map(|number| network_set(number, if number == 20 { changed } else { 0 }));
            sets.collect::<Vec<_>>().join("---\n")
        };
        let mut reader = Reader::default();
        let first = load(&mut reader, &path, &text(0));
        assert_eq!((first.set.network_sets.len(), reader.parsed), (50, 50));
        let second = load(&mut reader, &path, &text(1));
        assert_eq!(reader.parsed, 51);
        let same = first.set.network_sets.iter().zip(&second.set.network_sets).map(|(was, is)| was.is(is));
        assert_eq!(same.filter(|same| !same).count(), 1);
        fs::remove_file(path).expect("removed");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn changes_are_read_as_if_for_the_first_time(
            edits in prop::collection::vec((0_usize..8, 0_usize..6), 1..10),
        ) {
            let path = scratch("changes");
            let mut documents: Vec<String> = (0..5).map(|number| network_set(number, 0)).collect();
            let mut reader = Reader::default();
            for (edit, at) in edits {
                let at = at.min(documents.len() - 1);
                match edit {
                    0 | 1 => documents[at] = network_set(at, edit + 1),
                    2 => documents.insert(at, network_set(documents.len(), 0)),
                    3 if documents.len() > 1 => drop(documents.remove(at)),
                    4 => documents[at] = "# nothing\n".to_owned(),
                    5 => documents[at] = "spec: [\n".to_owned(),
                    6 => documents[at].push_str("...\n"),
                    _ => documents[at].insert_str(0, "# one line more\n"),
                }
                let text = documents.join("---\n");
                let again = load(&mut reader, &path, &text);
                let new = load(&mut Reader::default(), &path, &text);
                prop_assert_eq!(format!("{again:?}"), format!("{new:?}"), "{}", text);
            }
            fs::remove_file(path).expect("removed");
        }
    }
}
