//! Calico's selector language.

/// A parsed selector. Equality and hash are those of its canonical text.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Selector {
    canonical: String,
}

impl Selector {
    /// The canonical text: sets sorted and without duplicates, spaces normalised.
    #[must_use]
    pub fn canonical(&self) -> &str {
        &self.canonical
    }
}
