//! The contexts that live in this VM, by the ids that the host gave them.

use alloc::vec::Vec;

use hashbrown::HashTable;

use super::raw::Single;
use super::{HttpStream, Root};
use crate::bytes::quick_hash;

/// Roots and streams. Two plugins in one VM have a root each; a configuration
/// that is replaced has its root until its last stream ends.
pub(super) struct Vm {
    /// A few.
    roots: Vec<(u32, Root)>,
    streams: ById<HttpStream>,
}

static VM: Single<Vm> = Single::new(Vm {
    roots: Vec::new(),
    streams: ById::EMPTY,
});

/// Calls `work` with the VM. The host does not enter the VM twice at once; if it
/// did, the inner call would do nothing.
pub(super) fn with<T: Default>(work: impl FnOnce(&mut Vm) -> T) -> T {
    let vm = VM.try_borrow_mut();
    vm.map(|mut vm| work(&mut vm)).unwrap_or_default()
}

impl Vm {
    /// A root context has no parent; the parent of a stream is its root.
    pub(super) fn on_context_create(&mut self, id: u32, parent: u32) {
        if parent == 0 {
            self.roots.push((id, Root::default()));
            return;
        }
        let stream = self.root(parent).map(Root::on_stream);
        self.streams.insert(id, stream.unwrap_or_default());
    }

    pub(super) fn on_delete(&mut self, id: u32) {
        if self.streams.remove(id).is_none()
            && let Some(place) = self.roots.iter().position(|(at, _)| *at == id)
        {
            let (_, mut root) = self.roots.swap_remove(place);
            let is_succeeded = self
                .roots
                .iter()
                .any(|(_, other)| other.plugin == root.plugin && other.exchange.is_some());
            root.on_delete(is_succeeded);
        }
    }

    pub(super) fn on_tick(&mut self, id: u32) {
        let has_served = !self.streams.is_untouched();
        let root = self.roots.iter().find(|(at, _)| *at == id);
        let is_succeeded = root.is_some_and(|(_, root)| {
            self.roots.iter().any(|(at, other)| {
                *at != id && other.plugin == root.plugin && (*at > id || !other.is_quiet())
            })
        });
        if let Some(root) = self.root(id) {
            root.on_tick(has_served, is_succeeded);
        }
    }

    pub(super) fn root(&mut self, id: u32) -> Option<&mut Root> {
        let root = self.roots.iter_mut().find(|(at, _)| *at == id);
        root.map(|(_, root)| root)
    }

    pub(super) fn stream(&mut self, id: u32) -> Option<&mut HttpStream> {
        self.streams.get_mut(id)
    }
}

/// Contexts by id. The host counts ids up, so that those that live at the same
/// time mostly have a place of their own; the few others stand aside.
struct ById<T> {
    places: Vec<Option<(u32, T)>>,
    /// A table, for where many live the one that ends is mostly the oldest.
    aside: HashTable<(u32, T)>,
}

impl<T> ById<T> {
    const PLACES: usize = 256;

    const EMPTY: Self = Self {
        places: Vec::new(),
        aside: HashTable::new(),
    };

    /// Whether nothing was ever inserted.
    fn is_untouched(&self) -> bool {
        self.places.is_empty()
    }

    fn insert(&mut self, id: u32, context: T) {
        if self.places.is_empty() {
            self.places.resize_with(Self::PLACES, || None);
        }
        if let Some(place @ None) = self.place(id) {
            *place = Some((id, context));
        } else {
            let hash_of = |(id, _): &(u32, T)| hash(*id);
            self.aside.insert_unique(hash(id), (id, context), hash_of);
        }
    }

    fn get_mut(&mut self, id: u32) -> Option<&mut T> {
        match self.places.get_mut(id as usize % Self::PLACES) {
            Some(Some((at, context))) if *at == id => Some(context),
            _ => {
                let context = self.aside.find_mut(hash(id), |(at, _)| *at == id);
                context.map(|(_, context)| context)
            }
        }
    }

    fn remove(&mut self, id: u32) -> Option<T> {
        match self.place(id) {
            Some(place) if place.as_ref().is_some_and(|(at, _)| *at == id) => {
                place.take().map(|(_, context)| context)
            }
            _ => {
                let context = self.aside.find_entry(hash(id), |(at, _)| *at == id);
                context.ok().map(|found| found.remove().0.1)
            }
        }
    }

    fn place(&mut self, id: u32) -> Option<&mut Option<(u32, T)>> {
        self.places.get_mut(id as usize % Self::PLACES)
    }
}

/// Nobody but the host chooses ids.
fn hash(id: u32) -> u64 {
    quick_hash(&id.to_le_bytes())
}
