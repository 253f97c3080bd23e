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
    relations,
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
    /// A hash of the content, for comparison within this process.
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
}

/// A file that was parsed.
#[derive(Debug)]
pub(super) struct ParsedFile {
    pub(super) source: SourceText,
    pub(super) resources: Vec<Parsed>,
    /// See [`relations::claims`].
    pub(super) claims: Vec<u64>,
    pub(super) diagnostics: Vec<Diagnostic>,
    /// How many documents it has, broken ones included.
    documents: usize,
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
        self.files = kept;
        for (path, _) in paths.iter().zip(&is_empty).filter(|(_, empty)| **empty == Some(true)) {
            diagnostics.push(files::file_error(
                path,
                "no document in it: an empty set has to be written down, as \"{apiVersion: v1, kind: List, items: []}\"",
            ));
        }
        together(&parsed, diagnostics)
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
        Arc::new(ParsedFile { stamp, ..parse(path, content) })
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
    together(&[Arc::new(parse(path, content))], Vec::new())
}

/// What the files say together. `diagnostics`: of what could not be read.
fn together(parsed: &[Arc<ParsedFile>], mut diagnostics: Vec<Diagnostic>) -> Loaded {
    diagnostics.extend(parsed.iter().flat_map(|file| file.diagnostics.iter().cloned()));
    let so_far_good = diagnostics.iter().all(|d| d.severity != Severity::Error);
    let (set, mut found) = relations::check(parsed, so_far_good);
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

fn parse(path: &Path, mut content: Vec<u8>) -> ParsedFile {
    let identity = identity(path, &content);
    if content.starts_with(BYTE_ORDER_MARK) {
        content.drain(..BYTE_ORDER_MARK.len());
    }
    let path: Arc<Path> = Arc::from(path);
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
    let mut decoder = Decoder::new(&source);
    let mut resources = Vec::new();
    let mut documents = 0;
    yaml::documents(&source.text, |document| {
        documents += 1;
        match document {
            Ok(node) => kinds::document(&mut decoder, &node, &mut resources),
            Err(error) => {
                decoder.resource = None;
                decoder.error_at(error.at, 1, &FieldPath::ROOT, error.message);
            }
        }
        !decoder.is_full()
    });
    let diagnostics = decoder.finish();
    let claims = relations::claims(&resources);
    ParsedFile { source, resources, claims, diagnostics, documents, identity, stamp: None, exact: true }
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
        claims: Vec::new(),
        diagnostics: vec![diagnostic],
        documents: 1,
        identity,
        stamp: None,
        exact: false,
    }
}
