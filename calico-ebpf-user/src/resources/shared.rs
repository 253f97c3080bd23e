//! Resources that several sets have in common.

use std::{
    ops::{Deref, DerefMut, Range},
    sync::Arc,
};

/// A resource that a set has in common with those before it, as long as its file does not change: what was derived from it
/// then need not be derived again. Changing it changes this copy alone.
#[derive(Debug)]
pub struct Shared<T>(Arc<T>);

impl<T> Shared<T> {
    /// Whether both are the same one. Different ones may still be equal.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// The parts of two lists between what they share at their beginnings and at their ends: what changed is most often one file.
#[must_use]
pub fn changed_part<T>(old: &[Shared<T>], new: &[Shared<T>]) -> (Range<usize>, Range<usize>) {
    let most = old.len().min(new.len());
    let first = old.iter().zip(new).take_while(|(old, new)| old.is(new)).count();
    let last = old.iter().rev().zip(new.iter().rev()).take_while(|(old, new)| old.is(new)).count();
    let last = last.min(most - first);
    (first..old.len() - last, first..new.len() - last)
}

impl<T: Default> Default for Shared<T> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<T> From<T> for Shared<T> {
    fn from(value: T) -> Self {
        Self(Arc::new(value))
    }
}

impl<T> FromIterator<T> for Shared<Vec<T>> {
    fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
        Self(Arc::new(items.into_iter().collect()))
    }
}

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Deref for Shared<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Clone> DerefMut for Shared<T> {
    fn deref_mut(&mut self) -> &mut T {
        Arc::make_mut(&mut self.0)
    }
}
